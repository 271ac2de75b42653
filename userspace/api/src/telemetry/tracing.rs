//! Istio `telemetry/v1.Tracing`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ModeSelector, ProviderRef};

/// `Tracing`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// Which traffic is meant.
    #[serde(rename = "match")]
    pub matches: Option<ModeSelector>,
    /// Where spans go; the first counts.
    pub providers: Vec<ProviderRef>,
    /// Share of requests that begin a trace, percent.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100), transform = crate::schema::nullable))]
    pub random_sampling_percentage: Option<f64>,
    /// Report no spans; contexts are still passed on.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub disable_span_reporting: Option<bool>,
    /// Pass no trace context on.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub disable_context_propagation: Option<bool>,
    /// Further tags of spans.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Decide on sampling by the request id; true if absent.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Tags that Istio sets on every span; true if absent.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub enable_istio_tags: Option<bool>,
}

/// `Tracing.CustomTag`; one of the four sources is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("literal environment header formatter")))]
pub struct CustomTag {
    /// A fixed text.
    pub literal: Option<LiteralTag>,
    /// An environment variable of the proxy.
    pub environment: Option<DefaultedTag>,
    /// A header of the request.
    pub header: Option<DefaultedTag>,
    /// A text with Envoy's format commands.
    pub formatter: Option<FormatterTag>,
}

/// `Tracing.Literal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("value")))]
pub struct LiteralTag {
    /// The text.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub value: String,
}

/// `Tracing.Environment` and `Tracing.RequestHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct DefaultedTag {
    /// Name of what is read.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub name: String,
    /// Value where it is absent.
    pub default_value: String,
}

/// `Tracing.Formatter`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("value")))]
pub struct FormatterTag {
    /// The text with commands.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub value: String,
}
