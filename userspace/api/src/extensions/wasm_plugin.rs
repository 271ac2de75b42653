//! Istio `extensions/v1alpha1.WasmPlugin`.

use serde::Deserialize;
use serde_json::Value;

use crate::{Object, PolicyTargetReference, WorkloadSelector};

/// A WebAssembly filter of workloads.
pub type WasmPlugin = Object<WasmPluginSpec>;

/// `spec` of a [`WasmPlugin`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("url"), transform = crate::schema::exclusive("selector targetRef targetRefs", "only one of selector and targetRefs can be set")))]
pub struct WasmPluginSpec {
    /// The workloads it applies to; all of the namespace if absent.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What it attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Where the module is: `file://`, `http[s]://` or `oci://` (which may be left out).
    #[cfg_attr(feature = "schema", schemars(length(min = 1), transform = crate::schema::module_url))]
    pub url: String,
    /// SHA-256 of the module, in hexadecimal.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "(^$|^[a-f0-9]{64}$)")))]
    pub sha256: String,
    /// When an image is fetched again.
    pub image_pull_policy: PullPolicy,
    /// Secret that opens the registry.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub image_pull_secret: String,
    /// Public key that verifies the image's signature.
    pub verification_key: String,
    /// Configuration that the plugin gets.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::free"))]
    pub plugin_config: Option<Value>,
    /// Name of the plugin within the module.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub plugin_name: String,
    /// Where in the chain of filters it runs.
    pub phase: PluginPhase,
    /// Order within the phase: higher comes first.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub priority: Option<i32>,
    /// What happens to traffic when the plugin fails.
    pub fail_strategy: FailStrategy,
    /// The virtual machine.
    pub vm_config: Option<VmConfig>,
    /// Which traffic it sees; all if empty.
    #[serde(rename = "match")]
    pub matches: Vec<TrafficSelector>,
    /// Kind of filter.
    #[serde(rename = "type")]
    pub plugin_type: PluginType,
}

/// `PluginPhase` of a [`WasmPlugin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginPhase {
    /// At the end, before routing.
    #[default]
    UnspecifiedPhase,
    /// Before authentication.
    Authn,
    /// Before authorization.
    Authz,
    /// Before statistics.
    Stats,
}

/// `PluginType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginType {
    /// HTTP.
    #[default]
    UnspecifiedPluginType,
    /// HTTP filter.
    Http,
    /// Network filter.
    Network,
}

/// `PullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum PullPolicy {
    /// IfNotPresent, but Always for the tag `latest`.
    #[default]
    #[serde(rename = "UNSPECIFIED_POLICY")]
    Unspecified,
    /// Once.
    IfNotPresent,
    /// Whenever the resource changes.
    Always,
}

/// `FailStrategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailStrategy {
    /// Traffic is refused.
    #[default]
    FailClose,
    /// Traffic goes on without the plugin.
    FailOpen,
    /// The plugin is loaded again; traffic is refused until then.
    FailReload,
}

/// `VmConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct VmConfig {
    /// Environment of the virtual machine.
    #[cfg_attr(feature = "schema", schemars(length(max = 256), transform = crate::schema::list_map("name")))]
    pub env: Vec<VmEnv>,
}

/// `EnvVar`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name"), transform = crate::schema::rule(
        "!(has(self.valueFrom) && self.valueFrom == 'HOST') || !has(self.value)",
        "a value belongs to valueFrom INLINE"
    )))]
pub struct VmEnv {
    /// Name of the variable.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub name: String,
    /// Where the value comes from.
    pub value_from: EnvValueSource,
    /// The value; with INLINE only.
    #[cfg_attr(feature = "schema", schemars(length(max = 2048)))]
    pub value: String,
}

/// `EnvValueSource`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvValueSource {
    /// From `value`.
    #[default]
    Inline,
    /// From the environment of the proxy.
    Host,
}

/// `TrafficSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSelector {
    /// Which side of the workload.
    pub mode: TrafficMode,
    /// Which ports; all if empty.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::list_map("number")))]
    pub ports: Vec<TrafficPort>,
}

/// `type/v1beta1.WorkloadMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TrafficMode {
    /// Unset: both sides.
    #[default]
    Undefined,
    /// Outbound.
    Client,
    /// Inbound.
    Server,
    /// Both sides.
    ClientAndServer,
}

/// `type/v1beta1.PortSelector`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("number")))]
pub struct TrafficPort {
    /// Number of the port.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub number: u32,
}
