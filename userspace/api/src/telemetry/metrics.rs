//! Istio `telemetry/v1.Metrics`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ProviderRef, WorkloadMode};
use crate::ProtoDuration;

/// `Metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Where metrics go.
    pub providers: Vec<ProviderRef>,
    /// Changes of single metrics, in order.
    pub overrides: Vec<MetricsOverride>,
    /// Time between reports of open TCP connections; 5 s if absent.
    pub reporting_interval: Option<ProtoDuration>,
}

/// `MetricsOverrides`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsOverride {
    /// Which metrics are meant; all if absent.
    #[serde(rename = "match")]
    pub matches: Option<MetricSelector>,
    /// Turns them off.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub disabled: Option<bool>,
    /// Changes of their labels.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// `MetricSelector`; one of `metric` and `customMetric` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("metric customMetric")))]
pub struct MetricSelector {
    /// One of Istio's metrics.
    pub metric: Option<StandardMetric>,
    /// Name of another metric.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub custom_metric: Option<String>,
    /// Which side of the workload.
    pub mode: WorkloadMode,
}

/// `MetricSelector.IstioMetric`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StandardMetric {
    /// All of them.
    #[default]
    AllMetrics,
    /// `istio_requests_total`.
    RequestCount,
    /// `istio_request_duration_milliseconds`.
    RequestDuration,
    /// `istio_request_bytes`.
    RequestSize,
    /// `istio_response_bytes`.
    ResponseSize,
    /// `istio_tcp_connections_opened_total`.
    TcpOpenedConnections,
    /// `istio_tcp_connections_closed_total`.
    TcpClosedConnections,
    /// `istio_tcp_sent_bytes_total`.
    TcpSentBytes,
    /// `istio_tcp_received_bytes_total`.
    TcpReceivedBytes,
    /// `istio_request_messages_total`.
    GrpcRequestMessages,
    /// `istio_response_messages_total`.
    GrpcResponseMessages,
}

/// `MetricsOverrides.TagOverride`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "!(has(self.operation) && self.operation == 'UPSERT') || (has(self.value) && self.value != '')",
        "UPSERT needs a value"
    ), transform = crate::schema::rule(
        "!(has(self.operation) && self.operation == 'REMOVE') || !has(self.value)",
        "REMOVE takes no value"
    )))]
pub struct TagOverride {
    /// Whether the label is set or removed.
    pub operation: TagOperation,
    /// CEL expression of the value; with UPSERT only.
    pub value: String,
}

/// `TagOverride.Operation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    /// Sets it.
    #[default]
    Upsert,
    /// Removes it.
    Remove,
}
