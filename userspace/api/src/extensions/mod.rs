//! `extensions.istio.io` (v1alpha1): code of users in the proxy.

mod traffic_extension;
mod wasm_plugin;

pub use traffic_extension::{
    ExtensionPhase, LuaExtension, TrafficExtension, TrafficExtensionSpec, WasmExtension,
};
pub use wasm_plugin::{
    EnvValueSource, FailStrategy, PluginPhase, PluginType, PullPolicy, TrafficMode, TrafficPort,
    TrafficSelector, VmConfig, VmEnv, WasmPlugin, WasmPluginSpec,
};
