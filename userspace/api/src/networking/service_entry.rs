//! Istio `networking/v1.ServiceEntry`.

use serde::Deserialize;

use super::WorkloadEntrySpec;
use super::sidecar::LabelSelector;
use crate::Object;

/// A service that the registry does not know.
pub type ServiceEntry = Object<ServiceEntrySpec>;

/// `spec` of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("hosts"), transform = crate::schema::exclusive("workloadSelector endpoints", "only one of workloadSelector and endpoints can be set"), transform = crate::schema::rule(
        "!((has(self.addresses) ? self.addresses : []).exists(k, k.contains('/')) && !((has(self.resolution) ? self.resolution : 'NONE') in ['STATIC', 'NONE']))",
        "address ranges need resolution NONE or STATIC"
    ), transform = crate::schema::rule(
        "(has(self.resolution) ? self.resolution : 'NONE') != 'NONE' || !has(self.endpoints)",
        "endpoints need a resolution other than NONE"
    ), transform = crate::schema::rule(
        "(has(self.resolution) ? self.resolution : '') != 'DNS_ROUND_ROBIN' || (has(self.endpoints) ? self.endpoints : []).size() <= 1",
        "resolution DNS_ROUND_ROBIN takes at most one endpoint"
    ), transform = crate::schema::rule(
        "!((has(self.resolution) ? self.resolution : '') in ['DNS', 'DNS_ROUND_ROBIN']) || !self.hosts.exists(h, h.startsWith('*.'))",
        "a wildcard cannot be resolved by DNS"
    )))]
pub struct ServiceEntrySpec {
    /// Names; `*.` wildcards without resolution.
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(min = 1, max = 256),
            inner(length(min = 1, max = 255), regex(pattern = r"^[^*]|^\*\."))
        )
    )]
    pub hosts: Vec<String>,
    /// Virtual addresses or CIDRs.
    #[cfg_attr(feature = "schema", schemars(length(max = 256), transform = crate::schema::short_texts))]
    pub addresses: Vec<String>,
    /// Ports of the service.
    #[cfg_attr(feature = "schema", schemars(length(max = 256), transform = crate::schema::list_map("name"), transform = crate::schema::rule(
        "self.all(l1, self.exists_one(l2, l1.number == l2.number))",
        "the number of a port is there twice"
    )))]
    pub ports: Vec<ServicePort>,
    /// Whether the service counts as part of the mesh.
    pub location: ServiceEntryLocation,
    /// How its addresses are found.
    pub resolution: Resolution,
    /// Where the service runs.
    #[cfg_attr(feature = "schema", schemars(length(max = 4096)))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("number name")))]
pub struct ServicePort {
    /// Number of the port.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub number: u32,
    /// Protocol: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS.
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub protocol: String,
    /// Name of the port, unique in the service.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub name: String,
    /// Port of the endpoints, if another.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub target_port: u32,
}

/// `ServiceEntry.Location`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
