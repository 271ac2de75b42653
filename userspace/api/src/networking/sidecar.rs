//! Istio `networking/v1.Sidecar`: what a workload listens to and what it may reach.

use serde::Deserialize;

use super::{ConnectionPoolSettings, Destination, ServerTlsSettings};
use crate::{Object, StringMap};

/// Scope of a workload's configuration.
pub type Sidecar = Object<SidecarSpec>;

/// `spec` of a [`Sidecar`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    /// The workloads; all of the namespace if absent.
    pub workload_selector: Option<LabelSelector>,
    /// What the workload listens to: inbound listeners.
    pub ingress: Vec<IngressListener>,
    /// What the workload may reach.
    pub egress: Vec<EgressListener>,
    /// What happens to connections to unknown destinations.
    pub outbound_traffic_policy: Option<SidecarOutboundPolicy>,
    /// Connection limits of the application.
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
}

/// Networking's `WorkloadSelector`, which writes `labels`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must all be there.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::selector_labels"))]
    pub labels: StringMap,
}

/// `IstioIngressListener`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("port")))]
pub struct IngressListener {
    /// Port that is listened on.
    pub port: Option<SidecarPort>,
    /// Address that is listened on; the addresses of the workload if empty.
    pub bind: String,
    /// How traffic is captured.
    pub capture_mode: CaptureMode,
    /// Where the application listens.
    pub default_endpoint: String,
    /// TLS that ends here.
    pub tls: Option<ServerTlsSettings>,
    /// Connection limits of this port.
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// `IstioEgressListener`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("hosts")))]
pub struct EgressListener {
    /// Port that is listened on; the ports of the services if absent.
    pub port: Option<SidecarPort>,
    /// Address or Unix socket that is listened on.
    pub bind: String,
    /// How traffic is captured.
    pub capture_mode: CaptureMode,
    /// `namespace/name` of the services; `./*`, `*/*`, `~/*`.
    pub hosts: Vec<String>,
}

/// `SidecarPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// Number of the port.
    #[cfg_attr(feature = "schema", schemars(range(max = 65535)))]
    pub number: u32,
    /// Protocol of the port: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS.
    pub protocol: String,
    /// Name of the port.
    pub name: String,
    /// Deprecated, and without effect.
    pub target_port: u32,
}

/// `CaptureMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// As the environment says.
    #[default]
    Default,
    /// By redirection.
    Iptables,
    /// Not captured.
    None,
}

/// Sidecar's `OutboundTrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarOutboundPolicy {
    /// What is let through.
    pub mode: SidecarOutboundMode,
    /// Where unknown traffic goes instead.
    pub egress_proxy: Option<Destination>,
}

/// `OutboundTrafficPolicy.Mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SidecarOutboundMode {
    /// Only the registry.
    #[default]
    RegistryOnly,
    /// Everything.
    AllowAny,
}
