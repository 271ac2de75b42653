//! The way to the replica that leads: TLS 1.3 by the mesh's roots, under the name of the
//! controller's Service, one HTTP/2 connection that notices when the other side is gone.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::Service;

/// Longest token.
const MAX_TOKEN: u64 = 16 << 10;
/// Time for a connection, TLS and HTTP/2 included.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a connection is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    sender: SendRequest<Body>,
    token: HeaderValue,
}

impl Channel {
    /// Connects to a replica; `name` has to stand in its certificate.
    pub(super) async fn open(
        address: SocketAddr,
        name: &str,
        roots: Vec<CertificateDer<'static>>,
        token: HeaderValue,
    ) -> Result<Self, String> {
        let connecting = async {
            let tls = TlsConnector::from(Arc::new(client_config(roots)?));
            let name = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
            let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
            let _ = tcp.set_nodelay(true);
            let tls = tls.connect(name, tcp).await.map_err(|e| format!("TLS: {e}"))?;
            Self::over(tls, token).await
        };
        match timeout(CONNECT, connecting).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no connection within {CONNECT:?}")),
        }
    }

    /// HTTP/2 over a connection that is there.
    pub(super) async fn over(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        token: HeaderValue,
    ) -> Result<Self, String> {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| format!("HTTP/2: {e}"))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the leading replica ended");
            }
        });
        Ok(Self { sender, token })
    }
}

fn client_config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).map_err(|e| format!("roots: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| format!("TLS: {e}"))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(AUTHORIZATION, self.token.clone());
        Box::pin(self.sender.send_request(request))
    }
}

/// `authorization` with the token of a file, which the kubelet exchanges.
pub(super) fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(MAX_TOKEN + 1).read_to_end(&mut text).map_err(|e| wrong(e.to_string()))?;
    let token = text.trim_ascii();
    if token.is_empty() || text.len() as u64 > MAX_TOKEN {
        return Err(wrong("there is no token in it".to_owned()));
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_| wrong("what is in it is no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
