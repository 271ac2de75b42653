//! Istio `networking/v1.WorkloadEntry`.

use serde::Deserialize;

use crate::{Object, StringMap};

/// A workload that is not a pod.
pub type WorkloadEntry = Object<WorkloadEntrySpec>;

/// `spec` of a [`WorkloadEntry`]; also an endpoint of a `ServiceEntry`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "has(self.address) || has(self.network)",
        "an address or a network is needed"
    ), transform = crate::schema::rule(
        "!(has(self.address) && self.address.startsWith('unix://') && has(self.ports))",
        "a Unix socket has no ports"
    )))]
pub struct WorkloadEntrySpec {
    /// IP address, or DNS name, or `unix://` path.
    #[cfg_attr(feature = "schema", schemars(length(max = 256), transform = crate::schema::rule(
        "!self.startsWith('unix://') || self.substring(7, 8) in ['/', '@']",
        "a Unix socket is an absolute path, or abstract (@)"
    ), transform = crate::schema::rule(
        "!self.startsWith('unix://') || !self.endsWith('/')",
        "a Unix socket is no directory"
    )))]
    pub address: String,
    /// Ports by name of the service port.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::named_ports"))]
    pub ports: std::collections::BTreeMap<String, u32>,
    /// Labels of the workload.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::labels"))]
    pub labels: StringMap,
    /// Network; endpoints of another one are reached through a gateway.
    #[cfg_attr(feature = "schema", schemars(length(max = 2048)))]
    pub network: String,
    /// Where the workload is, as `region/zone/subzone`.
    #[cfg_attr(feature = "schema", schemars(length(max = 2048)))]
    pub locality: String,
    /// Share among the endpoints.
    pub weight: u32,
    /// Service account of the workload, if it is in the mesh.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub service_account: String,
}
