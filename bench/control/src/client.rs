//! A client of the API server: few HTTP/2 connections that everything shares, so that the load
//! costs the machine little beside what it makes the API server do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Connections.
const CONNECTIONS: usize = 4;
/// A name that the API server's own certificate has.
const SERVER_NAME: &str = "kubernetes.default.svc";
/// Answers to writes that nobody reads need not have the whole object.
pub(crate) const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Answers with the object.
pub(crate) const WHOLE: &str = "application/json";

/// Cloning shares the connections.
#[derive(Clone)]
pub(crate) struct Client {
    connections: Arc<[SendRequest<Full<Bytes>>]>,
    next: Arc<AtomicUsize>,
    authority: Arc<str>,
    bearer: Arc<str>,
}

impl Client {
    /// Connects to an API server on loopback whose certificate, with its authority, is in a file.
    pub(crate) async fn connect(port: u16, certificates: &Path, token: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(certificates)? {
            roots.add(certificate?)?;
        }
        let mut tls =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsConnector::from(Arc::new(tls));
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let stream = tls.connect(ServerName::try_from(SERVER_NAME)?, stream).await?;
            let (sender, connection) =
                http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            connections.push(sender);
        }
        Ok(Self {
            connections: connections.into(),
            next: Arc::default(),
            authority: format!("{SERVER_NAME}:{port}").into(),
            bearer: format!("Bearer {token}").into(),
        })
    }

    /// Sends a request; its whole answer, which has to be a good one.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Bytes> {
        let request = Request::builder()
            .method(&method)
            .uri(format!("https://{}{path}", self.authority))
            .header("authorization", &*self.bearer)
            .header("content-type", kind)
            .header("accept", accept)
            .body(Full::new(body))?;
        let told = || format!("{method} {path}");
        let answer = self.exchange(request).await.with_context(told)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.with_context(told)?.to_bytes();
        ensure!(
            status.is_success(),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&body[..body.len().min(1000)])
        );
        Ok(body)
    }

    /// Begins to read what comes as it comes.
    pub(crate) async fn follow(&self, path: &str) -> Result<Incoming> {
        let request = Request::builder()
            .uri(format!("https://{}{path}", self.authority))
            .header("authorization", &*self.bearer)
            .header("accept", WHOLE)
            .body(Full::default())?;
        let answer = self.exchange(request).await.with_context(|| path.to_owned())?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(answer.into_body())
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let mut connection = self.connections[turn].clone();
        connection.ready().await?;
        connection.send_request(request).await
    }
}
