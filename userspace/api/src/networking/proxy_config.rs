//! Istio `networking/v1beta1.ProxyConfig`: settings of proxies by workload.

use serde::Deserialize;

use crate::{Object, StringMap, WorkloadSelector};

/// Settings of the proxies of some workloads.
pub type ProxyConfig = Object<ProxyConfigSpec>;

/// `spec` of a [`ProxyConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfigSpec {
    /// The workloads it applies to; all of the namespace if absent.
    pub selector: Option<WorkloadSelector>,
    /// Worker threads; all cores if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0), transform = crate::schema::nullable))]
    pub concurrency: Option<i32>,
    /// Further environment variables.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::environment"))]
    pub environment_variables: StringMap,
    /// Image of the proxy.
    pub image: Option<ProxyImage>,
}

/// `ProxyImage`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    /// Kind of image, such as `distroless`.
    pub image_type: String,
}
