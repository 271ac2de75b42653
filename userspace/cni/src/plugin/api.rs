//! What the API server says of a pod, for when the daemon cannot: two GETs over HTTP/1.1 and TLS.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::core::{Namespace, Pod};
use fairlead_config::enrolment::Enrolment;
use fairlead_wire::cni::Sandbox;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::access::Access;

/// How long one server may take for both answers.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest object that is read: the API server takes no larger ones.
const MAX_BODY: usize = 4 << 20;

/// Who can say whether a pod is to be in the mesh.
pub trait Membership {
    /// Whether it is.
    ///
    /// # Errors
    /// It cannot be found out now.
    fn is_to_be_enrolled(&mut self, sandbox: &Sandbox, deadline: Instant) -> io::Result<bool>;
}

/// The API server, by the file that the installer keeps.
#[derive(Debug)]
pub struct ApiServer(PathBuf);

impl ApiServer {
    /// By that file.
    #[must_use]
    pub fn new(access: PathBuf) -> Self {
        Self(access)
    }
}

impl Membership for ApiServer {
    fn is_to_be_enrolled(&mut self, sandbox: &Sandbox, deadline: Instant) -> io::Result<bool> {
        let access = Access::read(&self.0)
            .map_err(|error| io::Error::other(format!("{}: {error}", self.0.display())))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ask(&access, sandbox, deadline))
    }
}

async fn ask(access: &Access, sandbox: &Sandbox, deadline: Instant) -> io::Result<bool> {
    let tls = tls(&access.ca)?;
    let mut last = io::Error::other("no API server is named");
    for server in &access.servers {
        let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
        let asked = ask_one(server, &tls, &access.token, sandbox);
        match tokio::time::timeout(patience, asked).await {
            Ok(Ok(enrolled)) => return Ok(enrolled),
            Ok(Err(error)) => last = io::Error::other(format!("{server}: {error}")),
            Err(_) => last = io::Error::other(format!("{server}: no answer in time")),
        }
    }
    Err(last)
}

fn tls(ca: &str) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn ask_one(
    server: &str,
    tls: &TlsConnector,
    token: &str,
    sandbox: &Sandbox,
) -> io::Result<bool> {
    let (host, port) = host_and_port(server)?;
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    let stream = tls.connect(name, tcp).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let authority = server.trim_start_matches("https://").trim_end_matches('/');
    let Sandbox { pod_namespace, pod_name, .. } = sandbox;
    let path = format!("/api/v1/namespaces/{pod_namespace}");
    let pod = get::<Pod>(&mut sender, authority, token, &format!("{path}/pods/{pod_name}")).await?;
    // The pod's own word may be enough, but asking is cheap and the decision is made in one place.
    let namespace = get::<Namespace>(&mut sender, authority, token, &path).await?;
    connection.abort();
    Ok(Enrolment::of(&pod, Some(&namespace.metadata.labels)).is_enrolled())
}

async fn get<T: DeserializeOwned>(
    sender: &mut SendRequest<Empty<Bytes>>,
    authority: &str,
    token: &str,
    path: &str,
) -> io::Result<T> {
    let request = http::Request::get(path)
        .header(http::header::HOST, authority)
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    if status != http::StatusCode::OK {
        return Err(io::Error::other(format!("GET {path}: {status}")));
    }
    let body =
        Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(io::Error::other)?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| io::Error::other(format!("GET {path}: {error}")))
}

/// `https://HOST:PORT`, with brackets around an IPv6 address.
pub(super) fn host_and_port(server: &str) -> io::Result<(String, u16)> {
    let wrong = || io::Error::other(format!("{server:?} is not https://HOST:PORT"));
    let rest = server.strip_prefix("https://").ok_or_else(wrong)?.trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (rest, 443),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}
