//! The resources that people write: Istio's networking and security API, its MeshConfig, and the
//! few Kubernetes core kinds that a mesh is derived from.
//!
//! Types here mirror the written form and nothing more: every field is optional and defaults as
//! protobuf does, oneofs are sibling `Option`s, and no meaning is checked. `fairlead-config`
//! reads, validates (`source`) and compiles them. Field documentation says what a field means and
//! names the API that defines it.
//!
//! Deserialization takes camelCase names; the reader in `fairlead-config` additionally maps
//! snake_case to them, as Istio's protojson does.

pub mod core;
mod mesh_config;
mod meta;
pub mod networking;
mod resource;
pub mod security;
mod value;

pub use mesh_config::{
    AccessLogEncoding, ConfigSource, ExtensionProvider, MeshConfig, MeshTls, OutboundTrafficPolicy,
    OutboundTrafficPolicyMode, PathNormalization, PathNormalizationType, ProxyDefaults,
};
pub use meta::{Object, ObjectMeta, OwnerReference, StringMap};
pub use resource::{Kind, ObjectKey, Resource};
pub use value::{
    IntOrString, MAX_DURATION, Percent, PolicyTargetReference, ProtoDuration, StringMatch,
    WorkloadSelector, parse_duration,
};

#[cfg(test)]
mod tests;
