//! What holds on the way into a local pod: PeerAuthentication and AuthorizationPolicy.

use std::sync::Arc;

use fairlead_policy::authz::AuthzSet;
use fairlead_types::AppProtocol;

use super::{Service, Workload};

/// The inbound side of one local enrolled pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// The pod.
    pub workload: Arc<Workload>,
    /// PeerAuthentication of the pod where no port says otherwise.
    pub mtls: MtlsMode,
    /// Ports that something is known of, ordered by number.
    pub ports: Box<[InboundPort]>,
    /// Authorization policies that select the pod.
    pub authz: Arc<AuthzSet>,
}

impl Inbound {
    /// What is known of a port.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&InboundPort> {
        self.ports.binary_search_by_key(&port, |p| p.number).ok().map(|i| &self.ports[i])
    }

    /// Whether a client that has proven no identity is refused at a port (STRICT).
    #[must_use]
    pub fn refuses_plaintext(&self, port: u16) -> bool {
        self.mtls(port) == MtlsMode::Strict
    }

    /// The mTLS mode of a port (`portLevelMtls` before the workload's mode).
    #[must_use]
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.port(port).and_then(|p| p.mtls).unwrap_or(self.mtls)
    }
}

/// A port of the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundPort {
    /// Port of the application (a service's target port).
    pub number: u16,
    /// Protocol of the service port that leads here.
    pub protocol: AppProtocol,
    /// The (first) service that leads here, for `destination_service`.
    pub service: Option<Arc<Service>>,
    /// `portLevelMtls`.
    pub mtls: Option<MtlsMode>,
}

/// PeerAuthentication `mtls.mode`, resolved (UNSET inherits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MtlsMode {
    /// Plaintext and mTLS.
    #[default]
    Permissive,
    /// mTLS only.
    Strict,
    /// Plaintext only.
    Disable,
}
