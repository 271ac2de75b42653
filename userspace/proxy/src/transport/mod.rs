//! Between nodes: many application connections and requests as streams of few long-lived TLS
//! sessions. Two wire forms share one codec (HTTP/2 framing): *native* on the application's own
//! port, and *HBONE* as Istio's ambient mode speaks it on port 15008. `docs/wire-format.md`
//! specifies both.
//!
//! [`Transport`] is a node's one instance. Outbound: [`Transport::tunnel`] carries bytes,
//! [`Transport::request`] a parsed HTTP request, [`Transport::upgrade`] one that switches
//! protocols. Inbound: [`Transport::serve`] takes an accepted connection and hands each stream to
//! an [`InboundHandler`]. [`relay`] moves bytes between an application's socket and a tunnel.

mod client_hello;
mod dispatch;
mod drive;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod inbound;
pub mod limits;
mod meta;
mod outbound;
mod pool;
mod relay;
mod round;
mod server;
mod session;
mod stream;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;

use fairlead_types::{PodPort, SpiffeId};

pub use client_hello::{MAX_CLIENT_HELLO, Peek, is_client_hello_with_alpn};
pub use error::TransportError;
pub use fairlead_identity::Wire;
pub use inbound::{Inbound, InboundHandler, InboundStream, Peer, TunnelOffer, UpgradeOffer};
pub use meta::{StreamMeta, baggage};
pub use outbound::{Transport, UpgradeOutcome};
pub use pool::SessionInfo;
pub(crate) use relay::relay_on;
pub use relay::{End, RelayCounters, RelayEnd, relay};
pub use stream::{StreamBody, Tunnel};

/// Where a stream goes, as whom, and whom it expects there.
#[derive(Clone)]
pub struct Target {
    key: Arc<pool::Key>,
    pod: Arc<dyn PodPort>,
    dst: SocketAddr,
}

impl Target {
    /// A destination.
    ///
    /// `pod` and `source` are where and as whom the session leaves; `connect_to` is the
    /// session's address (native: pod address and application port; HBONE: port 15008); `dst`
    /// is the address that the application there gets; `expect` are the identities of which the
    /// peer has to prove one (never empty: then every dial is refused).
    #[must_use]
    pub fn new(
        wire: Wire,
        pod: Arc<dyn PodPort>,
        source: SpiffeId,
        connect_to: SocketAddr,
        dst: SocketAddr,
        expect: Arc<[SpiffeId]>,
    ) -> Self {
        let key = pool::Key::new(pod.cookie(), source, connect_to, wire, expect);
        Self { key: Arc::new(key), pod, dst }
    }

    /// The wire form.
    #[must_use]
    pub fn wire(&self) -> Wire {
        self.key.wire
    }

    /// The source identity.
    #[must_use]
    pub fn source(&self) -> &SpiffeId {
        &self.key.source
    }

    /// The address of the session.
    #[must_use]
    pub fn connect_to(&self) -> SocketAddr {
        self.key.to
    }

    /// The address that the destination's application gets.
    #[must_use]
    pub fn dst(&self) -> SocketAddr {
        self.dst
    }

    /// Whom the peer has to prove to be.
    #[must_use]
    pub fn expect(&self) -> &Arc<[SpiffeId]> {
        &self.key.expect
    }

    fn pod(&self) -> &dyn PodPort {
        self.pod.as_ref()
    }

    fn key(&self) -> &pool::Key {
        &self.key
    }
}
