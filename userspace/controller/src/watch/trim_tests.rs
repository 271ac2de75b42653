use fairlead_config::source::{Format, parse};
use serde_json::json;

use super::*;

fn trimmed(kind: Kind, api_version: &str, object: Value) -> Value {
    let raw: Raw = serde_json::from_value(object).expect("an object");
    let bytes = trim(kind, api_version, raw);
    // What nodes get, they can read.
    let text = std::str::from_utf8(&bytes).expect("text");
    let parsed = parse(&std::sync::Arc::new("o.json".into()), text, Format::Json);
    assert_eq!((parsed.objects.len(), parsed.problems.len()), (1, 0), "{:?}", parsed.problems);
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn a_pod_keeps_what_nodes_read() {
    let pod = trimmed(
        Kind::Pod,
        "v1",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "x"}],
                "labels": {"app": "a"},
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                    "sidecar.istio.io/status": "{\"long\":1}",
                    "traffic.sidecar.istio.io/excludeInboundPorts": "15",
                    "notistio.io/x": "y"
                },
                "ownerReferences": [
                    {"kind": "ReplicaSet", "name": "r", "controller": true, "uid": "x"},
                    {"kind": "Other", "name": "o"}
                ]
            },
            "spec": {
                "nodeName": "node", "serviceAccountName": "sa", "volumes": [{}],
                "containers": [
                    {"name": "c", "image": "i", "env": [{"name": "E"}],
                     "ports": [{"name": "http", "containerPort": 80, "hostPort": 0}],
                     "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                     "readinessProbe": {"exec": {"command": ["true"]}}},
                    {"name": "quiet", "image": "i"}
                ],
                "initContainers": [{"name": "istio-proxy", "image": "i"}]
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [
                    {"type": "Ready", "status": "True", "lastProbeTime": null},
                    {"type": "Initialized", "status": "True"}
                ],
                "containerStatuses": [{}]
            }
        }),
    );
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "a"},
                "annotations": {
                    "sidecar.istio.io/status": "{}",
                    "traffic.sidecar.istio.io/excludeInboundPorts": "15"
                },
                "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]
            },
            "spec": {
                "nodeName": "node", "serviceAccountName": "sa",
                "containers": [
                    {"name": "c", "ports": [{"name": "http", "containerPort": 80}],
                     "livenessProbe": {"httpGet": {"port": "http"}}}
                ],
                "initContainers": [{"name": "istio-proxy"}]
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}]
            }
        })
    );
}

#[test]
fn a_heartbeat_of_a_node_changes_nothing() {
    let node = |version: &str, time: &str| {
        trimmed(
            Kind::Node,
            "v1",
            json!({
                "metadata": {"name": "a", "resourceVersion": version, "labels": {
                    "topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "a"}},
                "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                    "conditions": [{"type": "Ready", "lastHeartbeatTime": time}]
                }
            }),
        )
    };
    assert_eq!(node("1", "a"), node("2", "b"));
    assert_eq!(node("1", "a")["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}

#[test]
fn a_policy_keeps_its_spec_even_if_it_is_empty() {
    let policy = |spec: Value| {
        trimmed(
            Kind::AuthorizationPolicy,
            "security.istio.io/v1",
            json!({"metadata": {"name": "deny", "namespace": "n", "generation": 2, "uid": "u"},
                   "spec": spec, "status": {"conditions": []}}),
        )
    };
    let empty = policy(json!({}));
    assert_eq!((&empty["spec"], &empty["status"]), (&json!({}), &Value::Null));
    assert_eq!(empty["metadata"]["generation"], 2);
    let rules = json!({"action": "DENY", "rules": [{}]});
    assert_eq!(policy(rules.clone())["spec"], rules);
}

#[test]
fn an_endpoint_slice_keeps_its_endpoints() {
    let slice = trimmed(
        Kind::EndpointSlice,
        "discovery.k8s.io/v1",
        json!({
            "metadata": {"name": "s-1", "namespace": "n", "labels": {
                "kubernetes.io/service-name": "s", "endpointslice.kubernetes.io/managed-by": "x"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "t"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true},
                "nodeName": "a", "zone": "z",
                "targetRef": {"kind": "Pod", "namespace": "n", "name": "p", "uid": "u"}}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]
        }),
    );
    assert_eq!(slice["metadata"]["labels"], json!({"kubernetes.io/service-name": "s"}));
    assert_eq!(slice["metadata"].get("annotations"), None);
    let target = &slice["endpoints"][0]["targetRef"];
    assert_eq!(target, &json!({"kind": "Pod", "namespace": "n", "name": "p"}));
    assert_eq!(slice["ports"][0]["port"], 80);
}
