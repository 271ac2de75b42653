//! Istio `extensions/v1alpha1.TrafficExtension`: WebAssembly or Lua, in one resource.

use serde::Deserialize;
use serde_json::Value;

use super::{FailStrategy, PluginType, PullPolicy, TrafficSelector, VmConfig};
use crate::{Object, PolicyTargetReference, WorkloadSelector};

/// A filter of users, as WebAssembly or Lua.
pub type TrafficExtension = Object<TrafficExtensionSpec>;

/// `spec` of a [`TrafficExtension`]; exactly one of `wasm` and `lua` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("selector targetRefs", "only one of selector and targetRefs can be set"), transform = crate::schema::rule(
        "has(self.wasm) != has(self.lua)",
        "exactly one of wasm and lua must be set"
    )))]
pub struct TrafficExtensionSpec {
    /// The workloads it applies to; all of the namespace if absent.
    pub selector: Option<WorkloadSelector>,
    /// What it attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Where in the chain of filters it runs.
    pub phase: ExtensionPhase,
    /// Order within the phase: higher comes first.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub priority: Option<i32>,
    /// Which traffic it sees; all if empty.
    #[serde(rename = "match")]
    pub matches: Vec<TrafficSelector>,
    /// A WebAssembly module.
    pub wasm: Option<WasmExtension>,
    /// A Lua script.
    pub lua: Option<LuaExtension>,
}

/// `ExecutionPhase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExtensionPhase {
    /// At the end, before routing.
    #[default]
    Unspecified,
    /// Before authentication.
    Authn,
    /// Before authorization.
    Authz,
    /// Before statistics.
    Stats,
}

/// `WasmConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("url")))]
pub struct WasmExtension {
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
    /// What happens to traffic when the plugin fails.
    pub fail_strategy: FailStrategy,
    /// The virtual machine.
    pub vm_config: Option<VmConfig>,
    /// Kind of filter.
    #[serde(rename = "type")]
    pub plugin_type: PluginType,
}

/// `LuaConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("inlineCode")))]
pub struct LuaExtension {
    /// The script.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 65536)))]
    pub inline_code: String,
}
