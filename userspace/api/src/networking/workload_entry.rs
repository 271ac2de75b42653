//! Istio `networking/v1.WorkloadEntry`.

use serde::Deserialize;

use crate::{Object, StringMap};

/// A workload that is not a pod.
pub type WorkloadEntry = Object<WorkloadEntrySpec>;

/// `spec` of a [`WorkloadEntry`]; also an endpoint of a `ServiceEntry`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// IP address, or DNS name, or `unix://` path.
    pub address: String,
    /// Ports by name of the service port.
    pub ports: std::collections::BTreeMap<String, u32>,
    /// Labels.
    pub labels: StringMap,
    /// Network; endpoints of another one are reached through a gateway.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Share among the endpoints.
    pub weight: u32,
    /// Service account of the workload, if it is in the mesh.
    pub service_account: String,
}
