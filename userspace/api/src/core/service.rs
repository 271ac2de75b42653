//! Kubernetes `core/v1.Service`.

use std::net::IpAddr;

use serde::Deserialize;

use crate::{IntOrString, ObjectMeta, StringMap};

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: ServiceSpec,
}

impl Service {
    /// The virtual addresses: `spec.clusterIPs`, or `spec.clusterIP` where that list is empty;
    /// none for a headless service.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let single = self.spec.cluster_ips.is_empty().then_some(&self.spec.cluster_ip);
        single.into_iter().chain(&self.spec.cluster_ips).filter_map(|text| text.parse().ok())
    }

    /// Whether clients see the endpoints' own addresses (`clusterIP: None`).
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None" || self.spec.cluster_ips.iter().any(|ip| ip == "None")
    }
}

/// `ServiceSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Type.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// First virtual address, or `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All virtual addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Further addresses that lead to the service.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it; without any, EndpointSlices are written by hand.
    pub selector: StringMap,
    /// Name behind a service of type `ExternalName`.
    pub external_name: String,
    /// Affinity of clients.
    pub session_affinity: SessionAffinity,
    /// Whether pods that are not ready count as endpoints.
    pub publish_not_ready_addresses: bool,
    /// Whether only endpoints of the client's node are used.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// `PreferSameZone` (`PreferClose`) or `PreferSameNode`.
    pub traffic_distribution: String,
}

/// `ServicePort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; selects the protocol unless `appProtocol` does.
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// Application protocol.
    pub app_protocol: Option<String>,
    /// Port of the service.
    pub port: u16,
    /// Port of the pods, by number or name; `port` if absent.
    pub target_port: Option<IntOrString>,
    /// Port of the nodes.
    pub node_port: u16,
}

/// `Protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

/// `ServiceType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ServiceType {
    /// A virtual address within the cluster.
    #[default]
    ClusterIP,
    /// Also a port on every node.
    NodePort,
    /// Also a load balancer outside.
    LoadBalancer,
    /// An alias of a DNS name.
    ExternalName,
}

/// `ServiceAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum SessionAffinity {
    /// None.
    #[default]
    None,
    /// By address of the client.
    ClientIP,
}

/// `ServiceInternalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum InternalTrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of the client's node only.
    Local,
}
