//! How services of the control plane are called: TLS 1.3 by given roots, a token with each call, one
//! HTTP/2 connection that notices when the other side is gone.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::Service;

/// Longest token.
const MAX_TOKEN: u64 = 64 << 10;
/// Connecting to one address, TLS and HTTP/2 included.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a connection is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// What the other side may send ahead: one message of the largest size, and some.
const WINDOW: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of the token, or something else by which the sides recognize each other.
    #[error("{0}")]
    Credentials(String),
    /// The address, or who is there.
    #[error("{0}")]
    Connect(String),
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error(transparent)]
    Request(#[from] http::Error),
}

/// Who is called, and as whom.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// What requests call it, `name:port`.
    pub authority: Authority,
    /// `authorization`: see [`bearer`].
    pub token: HeaderValue,
}

/// One connection, as tonic's clients use it. Clones share it.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: SendRequest<Body>,
    peer: Peer,
}

impl Channel {
    /// Connects to a server that shows a certificate for `name`.
    ///
    /// # Errors
    /// [`ClientError::Connect`]: nobody is there in time, or somebody else.
    pub async fn open(
        peer: Peer,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    ) -> Result<Self, ClientError> {
        let connecting = async {
            let tcp = TcpStream::connect(peer.address).await.map_err(|e| e.to_string())?;
            let _ = tcp.set_nodelay(true);
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            let tls = tls.map_err(|e| format!("TLS: {e}"))?;
            if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err("it does not speak HTTP/2 (ALPN)".to_owned());
            }
            handshake(tls, peer).await
        };
        let opened = timeout(CONNECT, connecting).await;
        let opened = opened.unwrap_or_else(|_| Err(format!("no connection within {CONNECT:?}")));
        opened.map_err(ClientError::Connect)
    }

    /// HTTP/2 over a connection that is there.
    ///
    /// # Errors
    /// [`ClientError::Connect`]: the other side does not speak it.
    pub async fn over(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
    ) -> Result<Self, ClientError> {
        handshake(io, peer).await.map_err(ClientError::Connect)
    }

    /// Whom it is connected to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.peer.address
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

async fn handshake(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
) -> Result<Channel, String> {
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| format!("HTTP/2: {e}"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the control plane ended");
        }
    });
    Ok(Channel { sender, peer })
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, CallError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.sender.poll_ready(context).map_err(CallError::from)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.peer.authority.clone());
        match Uri::from_parts(parts) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => {
                let error = CallError::Request(error.into());
                return Box::pin(std::future::ready(Err(error)));
            }
        }
        request.headers_mut().insert(AUTHORIZATION, self.peer.token.clone());
        let answer = self.sender.send_request(request);
        Box::pin(async move { Ok(answer.await?) })
    }
}

/// TLS 1.3 by these roots, without a certificate of one's own.
///
/// # Errors
/// [`ClientError::Credentials`]: the cryptography does not allow it.
pub fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| ClientError::Credentials(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// `authorization` with the token of a file, which the kubelet exchanges.
///
/// # Errors
/// [`ClientError::Credentials`]: there is none in it.
pub fn bearer(path: &Path) -> Result<HeaderValue, ClientError> {
    let wrong = |why: String| ClientError::Credentials(format!("{}: {why}", path.display()));
    let text = read(path, MAX_TOKEN)?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err(wrong("there is no token in it".to_owned()));
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_| wrong("what is in it is no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A file of credentials, of at most `limit` bytes.
///
/// # Errors
/// [`ClientError::Credentials`]: it cannot be read, or is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ClientError> {
    let wrong = |why: String| ClientError::Credentials(format!("{}: {why}", path.display()));
    let mut content = Vec::new();
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(limit + 1).read_to_end(&mut content).map_err(|e| wrong(e.to_string()))?;
    if content.len() as u64 > limit {
        return Err(wrong(format!("longer than {limit} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
