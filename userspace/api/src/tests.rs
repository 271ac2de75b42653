//! The written forms, read by serde_json: what is taken, and that names are the API's.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::core::{Pod, Service};
use crate::networking::{DestinationRuleSpec, HttpRoute, SimpleLb, VirtualServiceSpec};
use crate::security::{AuthorizationPolicySpec, MutualTlsMode, PeerAuthenticationSpec};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn virtual_service() {
    let spec: VirtualServiceSpec = read(json!({
        "hosts": ["reviews"],
        "http": [{
            "match": [{"headers": {"end-user": {"exact": "jason"}, "x": {}}, "queryParams": {"v": {"regex": "2|3"}}}],
            "route": [{"destination": {"host": "reviews", "subset": "v2", "port": {"number": 9080}}, "weight": 25}],
            "retries": {"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx,reset"},
            "fault": {"delay": {"fixedDelay": "7s", "percentage": {"value": 12.5}}, "abort": {"httpStatus": 500}},
            "timeout": "0.5s",
        }],
        "exportTo": ["."],
    }));
    let route: &HttpRoute = &spec.http[0];
    assert_eq!(route.matches[0].headers["end-user"], StringMatch::Exact("jason".into()));
    assert_eq!(route.matches[0].headers["x"], StringMatch::Present);
    assert_eq!(route.matches[0].query_params["v"], StringMatch::Regex("2|3".into()));
    let to = route.route[0].destination.as_ref().unwrap();
    assert_eq!(
        (to.host.as_str(), to.port.unwrap().number, route.route[0].weight),
        ("reviews", 9080, 25)
    );
    assert_eq!(route.timeout.unwrap().get().as_millis(), 500);
    assert_eq!(route.fault.as_ref().unwrap().abort.as_ref().unwrap().http_status, Some(500));
    assert_eq!(spec.export_to, ["."]);
}

#[test]
fn string_match_is_a_oneof() {
    let error = serde_json::from_value::<StringMatch>(json!({"exact": "a", "prefix": "b"}));
    assert!(error.unwrap_err().to_string().contains("only one of"));
}

#[test]
fn destination_rule() {
    let spec: DestinationRuleSpec = read(json!({
        "host": "reviews",
        "trafficPolicy": {
            "loadBalancer": {"simple": "LEAST_CONN"},
            "connectionPool": {"http": {"http1MaxPendingRequests": 1, "h2UpgradePolicy": "UPGRADE"}},
            "outlierDetection": {"consecutive5xxErrors": 7, "baseEjectionTime": "3m"},
        },
    }));
    let policy = spec.traffic_policy.unwrap();
    assert_eq!(policy.load_balancer.unwrap().simple, Some(SimpleLb::LeastConn));
    assert_eq!(policy.connection_pool.unwrap().http.unwrap().http1_max_pending_requests, 1);
    let outlier = policy.outlier_detection.unwrap();
    assert_eq!(outlier.consecutive_5xx_errors, Some(7));
    assert_eq!(outlier.base_ejection_time.unwrap().get().as_secs(), 180);
}

#[test]
fn security() {
    let spec: AuthorizationPolicySpec = read(json!({
        "action": "DENY",
        "rules": [{"from": [{"source": {"notPrincipals": ["a/ns/b/sa/c"]}}],
                   "to": [{"operation": {"paths": ["/x/{*}"], "notMethods": ["GET"]}}],
                   "when": [{"key": "source.ip", "notValues": ["10.0.0.0/8"]}]}],
    }));
    let rule = &spec.rules[0];
    assert_eq!(rule.from[0].source.as_ref().unwrap().not_principals, ["a/ns/b/sa/c"]);
    assert_eq!(rule.to[0].operation.as_ref().unwrap().not_methods, ["GET"]);
    assert_eq!(rule.when[0].not_values, ["10.0.0.0/8"]);

    let spec: PeerAuthenticationSpec =
        read(json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}));
    assert_eq!(spec.mtls.unwrap().mode, MutualTlsMode::Strict);
    assert_eq!(spec.port_level_mtls[&8080].mode, MutualTlsMode::Disable);
}

#[test]
fn kubernetes_spelling() {
    let pod: Pod = read(json!({
        "metadata": {"name": "a", "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    assert_eq!(pod.ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
    assert!(pod.is_ready());
    assert_eq!(pod.service_account(), "default");

    let service: Service = read(json!({
        "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.1.0.1", "ports": [{"port": 80, "targetPort": "web", "appProtocol": "http2"}]},
    }));
    assert_eq!(service.cluster_ips().count(), 1);
    assert_eq!(service.spec.ports[0].target_port, Some(IntOrString::String("web".into())));
    assert!(!service.is_headless());
}

#[test]
fn mesh_config_defaults_are_istios() {
    let mesh: MeshConfig =
        read(json!({"accessLogEncoding": "JSON", "meshMTLS": {"minProtocolVersion": "TLSV1_3"}}));
    assert_eq!(mesh.access_log_encoding, AccessLogEncoding::Json);
    assert_eq!(
        (mesh.trust_domain.as_str(), mesh.root_namespace.as_str()),
        ("cluster.local", "istio-system")
    );
    assert_eq!(mesh.outbound_traffic_policy.mode, OutboundTrafficPolicyMode::AllowAny);
    assert!(mesh.enable_auto_mtls);
}

#[test]
fn kinds_and_keys() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_name(kind.as_str()), Some(*kind));
        assert!(!kind.versions().is_empty());
    }
    let resource =
        Resource::from(read::<Pod>(json!({"metadata": {"name": "a", "namespace": "b"}})));
    assert_eq!(resource.key(), ObjectKey::new(Kind::Pod, "b", "a"));
    assert_eq!(resource.key().to_string(), "Pod b/a");
}
