//! gRPC to services of the control plane: TLS 1.3 by the mesh's own root, the node's token with
//! each call, one HTTP/2 connection that notices when the other side is gone.
//!
//! Root and token are files that others exchange; they are read for every connection.

mod roots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use fairlead_wire::client::Channel;
use fairlead_wire::client::{ClientError, Peer, bearer, client_config};
use http::uri::Authority;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;

use crate::settings::ServiceSettings;

/// Resolving a name may take this long.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The file of roots or of the token.
    #[error(transparent)]
    Credentials(#[from] ClientError),
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
        let token = bearer(&self.settings.token_file)?;
        let config = client_config(roots::read(&self.settings.ca_root)?)?;
        let unnamed = |reason: String| RpcError::Resolve { name: address.host.clone(), reason };
        let name =
            ServerName::try_from(address.host.clone()).map_err(|e| unnamed(e.to_string()))?;
        let authority: Authority = self.authority().parse().map_err(|e| unnamed(format!("{e}")))?;
        let mut last = RpcError::Resolve {
            name: address.host.clone(),
            reason: "there is no address of that name".into(),
        };
        for at in self.resolve().await? {
            let peer = Peer { address: at, authority: authority.clone(), token: token.clone() };
            match Channel::open(peer, name.clone(), Arc::clone(&config)).await {
                Ok(channel) => return Ok(channel),
                Err(reason) => {
                    tracing::debug!(address = %at, %reason, "no connection");
                    last = RpcError::Connect { address: at, reason: reason.to_string() };
                }
            }
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
