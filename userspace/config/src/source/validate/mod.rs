//! Meaning of what was written, checked kind by kind as Istio's `pkg/config/validation` does it,
//! with the path of each fault.
//!
//! What can only be judged together with other objects (a subset that no DestinationRule has) is
//! the compiler's.

mod authorization_policy;
mod checks;
mod config_map;
mod destination_rule;
mod endpoint_slice;
mod envoy_filter;
mod extensions;
mod gateway;
mod http_action;
mod http_route;
mod load_balancer;
mod mesh_config;
mod node;
mod peer_authentication;
mod pod;
mod proxy_config;
mod request_authentication;
mod selector;
mod service;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub(super) use authorization_policy::authorization_policy;
pub(super) use config_map::config_map;
pub(super) use destination_rule::destination_rule;
pub(super) use endpoint_slice::endpoint_slice;
pub(super) use envoy_filter::envoy_filter;
pub(super) use extensions::{traffic_extension, wasm_plugin};
pub(super) use gateway::gateway;
pub(super) use mesh_config::mesh_config;
pub(super) use node::node;
pub(super) use peer_authentication::peer_authentication;
pub(super) use pod::pod;
pub(super) use proxy_config::proxy_config;
pub(super) use request_authentication::request_authentication;
pub(super) use service::service;
pub(super) use service_entry::service_entry;
pub(super) use sidecar::sidecar;
pub(super) use telemetry::telemetry;
pub(super) use virtual_service::{MESH, virtual_service};
pub(super) use workload_entry::workload_entry;
pub(super) use workload_group::workload_group;

use fairlead_api::core::Namespace;
use fairlead_api::{Kind, ObjectKey, ObjectMeta};

use super::path::Path;
use super::sink::Sink;
use crate::enrolment;

/// A namespace is its labels.
pub(super) fn namespace(object: &Namespace, sink: &mut Sink<'_>) {
    enrolment_words(&object.metadata, false, sink);
}

/// What decides on enrolment and says nothing would leave pods outside without a word.
fn enrolment_words(metadata: &ObjectMeta, of_pod: bool, sink: &mut Sink<'_>) {
    for unclear in enrolment::unclear(metadata, of_pod) {
        let (root, [on, off]) = (Path::Root, unclear.allowed);
        let message = format!("{:?} says nothing about the mesh", unclear.value);
        let place = root.field("metadata");
        sink.warn(&place.field(unclear.field).key(unclear.key), message, &format!("{on} or {off}"));
    }
}

/// Name and namespace of any object.
pub(super) fn metadata(kind: Kind, key: &ObjectKey, sink: &mut Sink<'_>) {
    const NAME: &str = "lower-case letters, digits, '-' and '.', beginning and ending with a \
                        letter or digit, at most 253";
    let (root, metadata) = (Path::Root, Path::Root.field("metadata"));
    debug_assert!(matches!(root, Path::Root));
    let name_is_valid = match kind {
        // Kubernetes names a Service like a DNS label; the mesh makes host names of it.
        Kind::Service | Kind::Namespace => checks::is_dns_label(&key.name),
        _ => checks::is_dns_name(&key.name),
    };
    if !name_is_valid {
        sink.error(&metadata.field("name"), format!("{:?} is not a valid name", key.name), NAME);
    }
    if kind.is_namespaced() && !checks::is_dns_label(&key.namespace) {
        let message = format!("{:?} is not a valid namespace", key.namespace);
        sink.error(&metadata.field("namespace"), message, checks::LABEL_RULE);
    }
}
