//! Istio `networking/v1.DestinationRule`.

use serde::Deserialize;

use super::{
    ClientTlsSettings, ConnectionPoolSettings, LoadBalancer, OutlierDetection, RetryBudget,
};
use crate::{Object, StringMap, WorkloadSelector};

/// What applies to traffic of a service after routing.
pub type DestinationRule = Object<DestinationRuleSpec>;

/// `spec` of a [`DestinationRule`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("host")))]
pub struct DestinationRuleSpec {
    /// Name of the service; a short name is of the rule's namespace; `*.` wildcards allowed.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub host: String,
    /// Policy of all ports and subsets.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see the rule: `.`, `*` or names; empty means all.
    pub export_to: Vec<String>,
    /// Client workloads (of the rule's namespace) that it applies to.
    pub workload_selector: Option<WorkloadSelector>,
}

/// `Subset`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct Subset {
    /// Name, unique in the rule.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 63)))]
    pub name: String,
    /// Labels of the endpoints.
    pub labels: StringMap,
    /// Policy of this subset; overrides the rule's.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// `TrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "!(has(self.tunnel) && has(self.proxyProtocol))",
        "only one of tunnel and proxyProtocol can be set"
    )))]
pub struct TrafficPolicy {
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to the destination.
    pub tls: Option<ClientTlsSettings>,
    /// Policies of single ports; they replace the destination's, field by field.
    #[cfg_attr(feature = "schema", schemars(length(max = 4096)))]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// TCP through an HTTP tunnel.
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol to the destination.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Bound of concurrent retries.
    pub retry_budget: Option<RetryBudget>,
}

/// `TrafficPolicy.PortTrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("port")))]
pub struct PortTrafficPolicy {
    /// Port that the policy is of.
    pub port: Option<PortSelector>,
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Ejection of endpoints that fail.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to the destination.
    pub tls: Option<ClientTlsSettings>,
}

/// `PortSelector`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// Number of the port.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub number: u32,
}

/// `TrafficPolicy.TunnelSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("targetHost targetPort")))]
pub struct Tunnel {
    /// `CONNECT` (default) or `POST`.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^(CONNECT|POST)?$")))]
    pub protocol: String,
    /// Host to which the tunnel leads.
    pub target_host: String,
    /// Port to which the tunnel leads.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub target_port: u32,
}

/// `TrafficPolicy.ProxyProtocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// Version of the header.
    pub version: ProxyProtocolVersion,
}

/// `TrafficPolicy.ProxyProtocol.VERSION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProxyProtocolVersion {
    /// Text.
    #[default]
    V1,
    /// Binary.
    V2,
}
