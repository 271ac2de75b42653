//! `telemetry.istio.io` (v1alpha1, v1): what is traced, counted and logged.

mod metrics;
mod tracing;

pub use metrics::{
    MetricSelector, Metrics, MetricsOverride, StandardMetric, TagOperation, TagOverride,
};
pub use tracing::{CustomTag, DefaultedTag, FormatterTag, LiteralTag, Tracing};

use serde::Deserialize;

use crate::{Object, PolicyTargetReference, WorkloadSelector};

/// Telemetry of workloads.
pub type Telemetry = Object<TelemetrySpec>;

/// `spec` of a [`Telemetry`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("selector targetRef targetRefs", "only one of selector and targetRefs can be set")))]
pub struct TelemetrySpec {
    /// The workloads it applies to; absent means the namespace, or the mesh in the root
    /// namespace.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What it attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Tracing.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
}

/// `ProviderRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct ProviderRef {
    /// Name of the provider in MeshConfig.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub name: String,
}

/// `WorkloadMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    /// Both sides.
    #[default]
    ClientAndServer,
    /// Outbound.
    Client,
    /// Inbound.
    Server,
}

/// `Tracing.TracingSelector` and `AccessLogging.LogSelector`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ModeSelector {
    /// Which side of the workload.
    pub mode: WorkloadMode,
}

/// `AccessLogging`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogging {
    /// Which traffic is meant.
    #[serde(rename = "match")]
    pub matches: Option<ModeSelector>,
    /// Where the log goes.
    pub providers: Vec<ProviderRef>,
    /// Turns the log off.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub disabled: Option<bool>,
    /// Which requests are logged.
    pub filter: Option<LogFilter>,
}

/// `AccessLogging.Filter`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LogFilter {
    /// CEL expression over the attributes of a request.
    pub expression: String,
}
