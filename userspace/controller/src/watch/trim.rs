//! What nodes read of an object, per kind, and nothing else.
//!
//! A node compiles what it gets with `fairlead_config`; the fields that are kept here are those
//! that its validation and compilation read (the types in `fairlead_api::core` list them), and
//! what the daemon itself wants of its own pods: ports of probes. Istio's kinds keep their whole
//! `spec`, because people wrote it and validation has to see it.

use fairlead_api::Kind;
use serde_json::{Map, Value};

use super::raw::Raw;

/// Where a node is, in the labels of its object: with those that they had before Kubernetes 1.17.
const TOPOLOGY: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// The label that names the service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Whether it is there is all that matters; its value is a long text.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// The object as JSON, trimmed. Keys come in an order of their own, so equal objects are equal
/// bytes.
#[must_use]
pub fn trim(kind: Kind, api_version: &str, raw: Raw) -> Vec<u8> {
    let Raw { metadata, mut fields, .. } = raw;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.as_str().into());
    object.insert("metadata".to_owned(), Value::Object(trim_metadata(kind, metadata)));
    match kind {
        Kind::Namespace | Kind::ServiceAccount | Kind::Secret => {}
        Kind::Node => {
            put(&mut object, "spec", pick_field(&mut fields, "spec", &["podCIDR", "podCIDRs"]));
            put(&mut object, "status", pick_field(&mut fields, "status", &["addresses"]));
        }
        Kind::Pod => {
            put(&mut object, "spec", fields.remove("spec").map(pod_spec));
            put(&mut object, "status", fields.remove("status").map(pod_status));
        }
        Kind::Service => {
            put(&mut object, "spec", pick_field(&mut fields, "spec", &SERVICE_SPEC));
        }
        Kind::EndpointSlice => {
            put(&mut object, "addressType", fields.remove("addressType"));
            put(
                &mut object,
                "endpoints",
                fields.remove("endpoints").map(|all| each(all, endpoint)),
            );
            put(&mut object, "ports", fields.remove("ports"));
        }
        Kind::ConfigMap => {
            let key = fairlead_config::source::MESH_KEY;
            put(&mut object, "data", pick_field(&mut fields, "data", &[key]));
        }
        // Istio's kinds, whatever there will be of them.
        _ => {
            put(&mut object, "spec", fields.remove("spec"));
        }
    }
    serde_json::to_vec(&Value::Object(object)).unwrap_or_default()
}

const SERVICE_SPEC: [&str; 11] = [
    "type",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "ports",
    "selector",
    "externalName",
    "sessionAffinity",
    "publishNotReadyAddresses",
    "internalTrafficPolicy",
    "trafficDistribution",
];

fn trim_metadata(kind: Kind, mut metadata: Map<String, Value>) -> Map<String, Value> {
    let mut kept = pick(&mut metadata, &["name", "namespace"]);
    match kind {
        // Their age decides nothing, and their UID is nobody's.
        Kind::Namespace | Kind::Node | Kind::EndpointSlice | Kind::Service | Kind::ConfigMap => {}
        Kind::Pod => kept.extend(pick(&mut metadata, &["uid", "creationTimestamp"])),
        _ => kept.extend(pick(&mut metadata, &["uid", "creationTimestamp", "generation"])),
    }
    kept.extend(pick(&mut metadata, &["deletionTimestamp"]));
    let all_labels = matches!(
        kind,
        Kind::Namespace | Kind::Pod | Kind::WorkloadEntry | Kind::ServiceEntry | Kind::Gateway
    );
    let label = |key: &str| match kind {
        _ if all_labels => true,
        Kind::Node => TOPOLOGY.contains(&key),
        Kind::EndpointSlice => key == SERVICE_NAME,
        _ => is_of_the_mesh(key),
    };
    put(&mut kept, "labels", texts(metadata.remove("labels"), label));
    let mut annotations = texts(metadata.remove("annotations"), is_of_the_mesh);
    if let Some(Value::Object(annotations)) = &mut annotations
        && let Some(status) = annotations.get_mut(SIDECAR_STATUS)
    {
        *status = "{}".into();
    }
    put(&mut kept, "annotations", annotations);
    if kind == Kind::Pod {
        let owners = metadata.remove("ownerReferences").map(|owners| {
            let mut owners = each(owners, |owner| owner.map(&["kind", "name", "controller"]));
            if let Value::Array(owners) = &mut owners {
                owners.retain(|o| o.get("controller").and_then(Value::as_bool).unwrap_or(false));
            }
            owners
        });
        put(&mut kept, "ownerReferences", owners);
    }
    kept
}

/// Labels and annotations that mean something to a mesh: Istio's and our own.
fn is_of_the_mesh(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["istio.io", "fairlead.io"].iter().any(|own| {
        domain.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }) || key == "istio-injection"
}

fn pod_spec(spec: Value) -> Value {
    let Value::Object(mut spec) = spec else { return Value::Null };
    let mut kept = pick(
        &mut spec,
        &["nodeName", "serviceAccountName", "hostNetwork", "hostname", "subdomain"],
    );
    put(&mut kept, "containers", spec.remove("containers").map(containers));
    put(&mut kept, "initContainers", spec.remove("initContainers").map(containers));
    Value::Object(kept)
}

/// Containers without ports, probes or a meaning are left out.
fn containers(all: Value) -> Value {
    let mut all = each(all, |container| {
        let Value::Object(mut container) = container else { return Value::Null };
        let mut kept = pick(&mut container, &["name"]);
        let ports = container
            .remove("ports")
            .map(|all| each(all, |port| port.map(&["name", "containerPort", "protocol"])));
        put(&mut kept, "ports", ports);
        for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
            put(&mut kept, name, container.remove(name).and_then(probe));
        }
        if let Some(Value::Object(mut hooks)) = container.remove("lifecycle") {
            let mut lifecycle = Map::new();
            for name in ["postStart", "preStop"] {
                put(&mut lifecycle, name, hooks.remove(name).and_then(probe));
            }
            put(&mut kept, "lifecycle", Some(Value::Object(lifecycle)));
        }
        let means = kept.len() > 1 || kept.get("name").is_some_and(|name| name == "istio-proxy");
        if means { Value::Object(kept) } else { Value::Null }
    });
    if let Value::Array(all) = &mut all {
        all.retain(|container| !container.is_null());
    }
    all
}

/// The port of a probe, below what kind of probe it is.
fn probe(probe: Value) -> Option<Value> {
    let Value::Object(mut probe) = probe else { return None };
    let mut kept = Map::new();
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(action) = probe.remove(kind) {
            kept.insert(kind.to_owned(), action.map(&["port", "host"]));
        }
    }
    (!kept.is_empty()).then_some(Value::Object(kept))
}

fn pod_status(status: Value) -> Value {
    let Value::Object(mut status) = status else { return Value::Null };
    let mut kept = pick(&mut status, &["phase", "podIP", "podIPs", "hostIP", "hostIPs"]);
    if let Some(Value::Array(conditions)) = status.remove("conditions") {
        let ready = conditions
            .into_iter()
            .filter(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"))
            .map(|condition| condition.map(&["type", "status"]))
            .collect();
        kept.insert("conditions".to_owned(), Value::Array(ready));
    }
    Value::Object(kept)
}

fn endpoint(endpoint: Value) -> Value {
    let Value::Object(mut endpoint) = endpoint else { return Value::Null };
    let mut kept =
        pick(&mut endpoint, &["addresses", "conditions", "hostname", "nodeName", "zone", "hints"]);
    let target = endpoint.remove("targetRef");
    put(&mut kept, "targetRef", target.map(|target| target.map(&["kind", "namespace", "name"])));
    Value::Object(kept)
}

trait Pick {
    /// The map with these keys only.
    fn map(self, keys: &[&str]) -> Value;
}

impl Pick for Value {
    fn map(self, keys: &[&str]) -> Value {
        match self {
            Value::Object(mut map) => Value::Object(pick(&mut map, keys)),
            _ => Value::Null,
        }
    }
}

/// Takes these keys out, in this order; what is empty or null says nothing.
fn pick(map: &mut Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    let mut kept = Map::new();
    for key in keys {
        put(&mut kept, key, map.remove(*key));
    }
    kept
}

fn pick_field(map: &mut Map<String, Value>, field: &str, keys: &[&str]) -> Option<Value> {
    map.remove(field).map(|value| value.map(keys))
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    let Some(value) = value else { return };
    let empty = match &value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    // An empty spec of a policy is a statement.
    if !empty || (key == "spec" && !value.is_null()) {
        map.insert(key.to_owned(), value);
    }
}

fn each(all: Value, trim: impl FnMut(Value) -> Value) -> Value {
    match all {
        Value::Array(all) => Value::Array(all.into_iter().map(trim).collect()),
        _ => Value::Null,
    }
}

fn texts(map: Option<Value>, keep: impl Fn(&str) -> bool) -> Option<Value> {
    let Some(Value::Object(map)) = map else { return None };
    Some(Value::Object(map.into_iter().filter(|(key, _)| keep(key)).collect()))
}

#[cfg(test)]
#[path = "trim_tests.rs"]
mod tests;
