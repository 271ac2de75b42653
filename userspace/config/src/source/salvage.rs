//! What is left of a Pod or a Namespace that is refused and has no good version.
//!
//! Whoever cannot be read would not be in the mesh, and his traffic would pass in plaintext and
//! without policy. So what enrolment follows from is read field by field, as far as it can be: a
//! Namespace keeps its labels, and a Pod that they enrol is captured and refused.

use fairlead_api::core::{Namespace, Pod};
use fairlead_api::{Kind, ObjectKey, ObjectMeta, Resource, StringMap};

use super::tree::{Node, Value};
use crate::enrolment::REFUSED_ANNOTATION;

/// The rest of an object; `None` if it is of another kind, or its labels cannot be read.
pub(crate) fn salvage(key: &ObjectKey, node: &Node<'_>) -> Option<Resource> {
    if !matches!(key.kind, Kind::Pod | Kind::Namespace) {
        return None;
    }
    let metadata = node.get("metadata");
    let metadata = ObjectMeta {
        name: key.name.to_string(),
        namespace: key.namespace.to_string(),
        uid: text(metadata, "uid"),
        labels: texts(metadata.and_then(|m| m.get("labels")))?,
        annotations: texts(metadata.and_then(|m| m.get("annotations"))).unwrap_or_default(),
        ..ObjectMeta::default()
    };
    if key.kind == Kind::Namespace {
        return Some(Namespace { metadata }.into());
    }
    let mut pod = Pod { metadata, ..Pod::default() };
    let reason = "its Pod object is not valid, and no earlier version was";
    pod.metadata.annotations.insert(REFUSED_ANNOTATION.to_owned(), reason.to_owned());
    let (spec, status) = (node.get("spec"), node.get("status"));
    pod.spec.node_name = text(spec, "nodeName");
    pod.spec.host_network = text(spec, "hostNetwork") == "true";
    pod.spec.service_account_name = text(spec, "serviceAccountName");
    pod.status.pod_ip = text(status, "podIP");
    Some(pod.into())
}

fn text(node: Option<&Node<'_>>, field: &str) -> String {
    node.and_then(|node| node.get(field)).and_then(Node::as_str).unwrap_or_default().to_owned()
}

/// The entries of a map that are scalars, without quotes or with them.
fn texts(node: Option<&Node<'_>>) -> Option<StringMap> {
    let Some(node) = node else { return Some(StringMap::new()) };
    let Value::Mapping(entries) = &node.value else { return None };
    let entry = |key: &str, value: &Node<'_>| Some((key.to_owned(), value.as_str()?.to_owned()));
    Some(entries.iter().filter_map(|(key, value)| entry(key, value)).collect())
}
