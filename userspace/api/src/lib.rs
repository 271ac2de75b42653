//! The resources that people write: Istio's networking, security, telemetry and extensions API, its
//! MeshConfig, and the few Kubernetes core kinds that a mesh is derived from.
//!
//! Types here mirror the written form and nothing more: every field is optional and defaults as
//! protobuf does, oneofs are sibling `Option`s, and no meaning is checked. `fairlead-config`
//! reads, validates (`source`) and compiles them. Field documentation says what a field means and
//! names the API that defines it.
//!
//! Deserialization takes camelCase names; the reader in `fairlead-config` additionally maps
//! snake_case to them, as Istio's protojson does.
//!
//! With the feature `schema` (build tools and tests; not the node), `schema` turns these types into the
//! CustomResourceDefinitions of `manifests/crds`: comments become descriptions, and the attributes
//! of fields say the rest. `cargo xtask manifests` writes them.

pub mod core;
pub mod extensions;
mod mesh_config;
mod meta;
pub mod networking;
mod resource;
#[cfg(feature = "schema")]
pub mod schema;
pub mod security;
mod status;
pub mod telemetry;
mod value;

pub use mesh_config::{
    AccessLogEncoding, ConfigSource, ExtensionProvider, MeshConfig, MeshTls, OutboundTrafficPolicy,
    OutboundTrafficPolicyMode, PathNormalization, PathNormalizationType, ProxyDefaults,
};
pub use meta::{Object, ObjectMeta, OwnerReference};
pub use resource::{Kind, ObjectKey, Resource};
pub use status::{
    Condition, ConditionStatus, MessageLevel, MessageType, ResourceStatus, ValidationMessage,
};
pub use value::{
    IntOrString, MAX_DURATION, Percent, PolicyTargetReference, ProtoDuration, StringMap,
    StringMatch, WorkloadSelector, parse_duration,
};

#[cfg(test)]
mod tests;
