//! Istio `networking/v1.ServiceEntry`.

use serde::Deserialize;

use super::WorkloadEntrySpec;
use super::sidecar::LabelSelector;
use crate::Object;

/// A service that the registry does not know.
pub type ServiceEntry = Object<ServiceEntrySpec>;

/// `spec` of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Names; `*.` wildcards without resolution.
    pub hosts: Vec<String>,
    /// Virtual addresses or CIDRs.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Whether the service counts as part of the mesh.
    pub location: ServiceEntryLocation,
    /// How its addresses are found.
    pub resolution: Resolution,
    /// Endpoints.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Endpoints by labels, in place of `endpoints`.
    pub workload_selector: Option<LabelSelector>,
    /// Namespaces that see the entry; empty means all.
    pub export_to: Vec<String>,
    /// Names that the server's certificate must carry.
    pub subject_alt_names: Vec<String>,
}

/// `ServicePort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Number.
    pub number: u32,
    /// Protocol: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS.
    pub protocol: String,
    /// Name.
    pub name: String,
    /// Port of the endpoints, if another.
    pub target_port: u32,
}

/// `ServiceEntry.Location`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryLocation {
    /// Outside the mesh: no mTLS.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// `ServiceEntry.Resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address that the client asked for.
    #[default]
    None,
    /// The addresses of the endpoints.
    Static,
    /// DNS, every address an endpoint.
    Dns,
    /// DNS, the first address.
    DnsRoundRobin,
    /// Wildcard names, resolved on demand.
    DynamicDns,
}
