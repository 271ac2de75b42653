//! gRPC to services of the control plane: TLS 1.3 by the mesh's own root, the node's token with
//! each call, one HTTP/2 connection that notices when the other side is gone.
//!
//! Root and token are files that others exchange; they are read for every connection.

mod channel;
mod credentials;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use channel::Channel;

use crate::settings::ServiceSettings;

/// Resolving a name may take this long.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connecting to one address, TLS and HTTP/2 included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// How often a connection is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// What the other side may send ahead: one message of the largest size, and some.
const WINDOW: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The file of roots or of the token.
    #[error("{0}")]
    Credentials(String),
    /// The name leads nowhere.
    #[error("{name} cannot be resolved: {reason}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Each of its addresses failed; the last reason.
    #[error("{address}: {reason}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// A service of the control plane.
#[derive(Clone, Debug)]
pub struct Service {
    settings: ServiceSettings,
    /// Its addresses as they were last found: they count while nobody resolves its name, as DNS
    /// may be down together with what is to be mended.
    known: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Service {
    /// The service of these settings.
    #[must_use]
    pub fn new(settings: ServiceSettings) -> Self {
        Self { settings, known: Arc::default() }
    }

    /// Where it is, for people.
    #[must_use]
    pub fn name(&self) -> String {
        self.settings.address.to_string()
    }

    /// Connects to one of its addresses, beginning at any of them.
    ///
    /// # Errors
    /// [`RpcError`]: none could be had.
    pub async fn connect(&self) -> Result<Channel, RpcError> {
        let address = &self.settings.address;
        let roots = credentials::roots(&self.settings.ca_root)?;
        let token = credentials::bearer(&self.settings.token_file)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| RpcError::Credentials(format!("TLS: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(address.host.clone())
            .map_err(|e| RpcError::Resolve { name: address.host.clone(), reason: e.to_string() })?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut last = RpcError::Resolve {
            name: address.host.clone(),
            reason: "there is no address of that name".into(),
        };
        for at in self.resolve().await? {
            let opening = open(&connector, name.clone(), at);
            let reason = match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
                Ok(Ok(sender)) => {
                    return Ok(Channel::new(sender, token, self.authority(), at));
                }
                Ok(Err(reason)) => reason,
                Err(_) => format!("no connection within {CONNECT_TIMEOUT:?}"),
            };
            tracing::debug!(address = %at, reason, "no connection");
            last = RpcError::Connect { address: at, reason };
        }
        Err(last)
    }

    fn authority(&self) -> String {
        let text = self.settings.address.to_string();
        text.strip_prefix("https://").map(str::to_owned).unwrap_or(text)
    }

    /// Its addresses, beginning at any of them: nodes that start together part.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, RpcError> {
        let mut found = match self.look_up().await {
            Ok(found) => {
                self.known.lock().clone_from(&found);
                found
            }
            Err(error) => {
                let known = self.known.lock().clone();
                if known.is_empty() {
                    return Err(error);
                }
                tracing::warn!(%error, "going by the addresses that were found before");
                known
            }
        };
        let turn = crate::random::below(found.len());
        found.rotate_left(turn);
        Ok(found)
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, RpcError> {
        let address = &self.settings.address;
        let failed = |reason: String| RpcError::Resolve { name: address.host.clone(), reason };
        let looking = tokio::net::lookup_host((address.host.as_str(), address.port));
        match tokio::time::timeout(RESOLVE_TIMEOUT, looking).await {
            Ok(Ok(found)) => Ok(found.take(MAX_ADDRESSES).collect()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {RESOLVE_TIMEOUT:?}"))),
        }
    }
}

async fn open(
    connector: &TlsConnector,
    name: ServerName<'static>,
    at: SocketAddr,
) -> Result<channel::Sender, String> {
    let tcp = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
    let _ = tcp.set_nodelay(true);
    let tls = connector.connect(name, tcp).await.map_err(|e| format!("TLS: {e}"))?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not speak HTTP/2 (ALPN)".into());
    }
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(tls))
        .await
        .map_err(|e| format!("HTTP/2: {e}"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the control plane ended");
        }
    });
    Ok(sender)
}
