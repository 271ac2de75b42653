//! Istio `security/v1.PeerAuthentication`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Object, WorkloadSelector};

/// Whether plaintext is accepted.
pub type PeerAuthentication = Object<PeerAuthenticationSpec>;

/// `spec` of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0)",
        "portLevelMtls needs a selector with labels"
    )))]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; absent means the namespace, or the mesh in the root
    /// namespace.
    pub selector: Option<WorkloadSelector>,
    /// The mode of all ports; inherited from the wider scope if absent.
    pub mtls: Option<MutualTls>,
    /// Modes of single ports of the workload; only together with `selector`.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::min_properties(1), transform = crate::schema::port_keys))]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// `PeerAuthentication.MutualTLS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// What is accepted.
    pub mode: MutualTlsMode,
}

/// `PeerAuthentication.MutualTLS.Mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
