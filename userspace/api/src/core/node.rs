//! Kubernetes `core/v1.Node`.

use serde::Deserialize;

use crate::ObjectMeta;

/// A node; the labels `topology.kubernetes.io/region` and `/zone` give its locality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: NodeSpec,
    /// Status.
    pub status: NodeStatus,
}

/// `NodeSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Range of the node's pod addresses.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Ranges of the node's pod addresses, one per family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// `NodeStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Addresses of the node.
    pub addresses: Vec<NodeAddress>,
}

/// `NodeAddress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`…
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}
