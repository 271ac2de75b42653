//! Istio `security/v1.PeerAuthentication`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Object, WorkloadSelector};

/// Whether plaintext is accepted.
pub type PeerAuthentication = Object<PeerAuthenticationSpec>;

/// `spec` of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; absent means the namespace, or the mesh in the root
    /// namespace.
    pub selector: Option<WorkloadSelector>,
    /// The mode of all ports; inherited from the wider scope if absent.
    pub mtls: Option<MutualTls>,
    /// Modes of single ports of the workload; only together with `selector`.
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// `PeerAuthentication.MutualTLS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// The mode.
    pub mode: MutualTlsMode,
}

/// `PeerAuthentication.MutualTLS.Mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// Inherit from the wider scope; PERMISSIVE where there is none.
    #[default]
    Unset,
    /// Plaintext only: the connection is not a tunnel.
    Disable,
    /// Plaintext and mTLS.
    Permissive,
    /// mTLS only.
    Strict,
}
