//! Services, their addresses and endpoints.

use fairlead_types::{AppProtocol, OriginalDst, WorkloadId};

use super::*;
use crate::model::Outbound;

fn outbound(fixture: &Fixture, address: &str) -> String {
    match fixture.snapshot().outbound(OriginalDst(address.parse().unwrap())) {
        Outbound::Service(port) => format!("{}:{}", port.service.host, port.number),
        Outbound::Workload(workload) => workload.id.to_string(),
        Outbound::Unknown => "unknown".to_owned(),
    }
}

#[test]
fn addresses_lead_to_services_and_pods() {
    let mut fixture = Fixture::new(&bookinfo());
    for (address, what) in [
        ("10.96.0.3:9080", "reviews.default.svc.cluster.local:9080"),
        ("10.96.0.3:9081", "unknown"),
        ("10.0.1.2:9080", "default/reviews-v2"),
        ("10.0.1.2:1", "default/reviews-v2"),
        ("192.0.2.1:80", "unknown"),
    ] {
        assert_eq!(outbound(&fixture, address), what, "{address}");
    }
    fixture.apply(&service("reviews", "10.96.0.33", "http"));
    assert_eq!(outbound(&fixture, "10.96.0.3:9080"), "unknown");
    assert_eq!(outbound(&fixture, "10.96.0.33:9080"), "reviews.default.svc.cluster.local:9080");
    fixture.remove(&service("reviews", "10.96.0.33", "http"));
    assert_eq!(outbound(&fixture, "10.96.0.33:9080"), "unknown");
    assert!(fixture.snapshot().service("default", "reviews").is_none());
}

#[test]
fn protocols_and_dual_stack() {
    let fixture = Fixture::new(
        "
apiVersion: v1
kind: Service
metadata: {name: many, namespace: default}
spec:
  clusterIPs: [10.96.1.1, 'fd00::1']
  selector: {app: many}
  ports:
  - {name: http-web, port: 80}
  - {name: grpc, port: 81}
  - {name: web, port: 82, appProtocol: kubernetes.io/h2c}
  - {name: mysql-db, port: 83}
  - {name: other, port: 84}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: both, namespace: default, labels: {app: many}}
spec: {nodeName: node-b, containers: [{name: main}]}
status: {phase: Running, podIP: 10.0.0.7, podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: six, namespace: default, labels: {app: many}}
spec: {nodeName: node-b, containers: [{name: main}]}
status: {phase: Running, podIP: 'fd00::8'}
",
    );
    let host = "many.default.svc.cluster.local";
    assert_eq!(outbound(&fixture, "10.96.1.1:80"), format!("{host}:80"));
    assert_eq!(outbound(&fixture, "[fd00::1]:81"), format!("{host}:81"));
    assert_eq!(outbound(&fixture, "10.96.1.1:53"), "unknown");
    let protocol = |port| fixture.port("default", "many", port).protocol;
    assert_eq!(
        [80, 81, 82, 83, 84].map(protocol),
        [
            AppProtocol::Http,
            AppProtocol::Grpc,
            AppProtocol::Http2,
            AppProtocol::ServerFirst,
            AppProtocol::Detect
        ]
    );
    // A pod with two addresses is one endpoint, of the family of the first cluster IP if it can be.
    assert_eq!(fixture.default_endpoints("default", "many", 80), ["10.0.0.7:80", "[fd00::8]:80"]);
    assert_eq!(outbound(&fixture, "[fd00::7]:80"), "default/both");
}

#[test]
fn only_pods_that_can_serve_are_endpoints() {
    let ready = |name: &str, ip: &str, status: &str| {
        let pod = pod(name, ip, "node-b", &[("app", "ratings")]);
        pod + &format!("  conditions: [{{type: Ready, status: '{status}'}}]\n")
    };
    let mut fixture = Fixture::new(&(bookinfo() + &ready("ratings-x", "10.0.9.1", "False")));
    let endpoints = |fixture: &Fixture| fixture.default_endpoints("default", "ratings", 9080);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9080"]);
    fixture.apply(&ready("ratings-x", "10.0.9.1", "True"));
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9080", "10.0.9.1:9080"]);
    let terminating = ready("ratings-x", "10.0.9.1", "True")
        .replace("  labels:\n", "  deletionTimestamp: '2026-01-01T00:00:00Z'\n  labels:\n");
    fixture.apply(&terminating);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9080"]);
    // It is still known by its address: connections to it keep their identity.
    assert_eq!(outbound(&fixture, "10.0.9.1:9080"), "default/ratings-x");
    let over =
        ready("ratings-x", "10.0.9.1", "False").replace("phase: Running", "phase: Succeeded");
    fixture.apply(&over);
    assert_eq!(outbound(&fixture, "10.0.9.1:9080"), "unknown");
    let all = service("ratings", "10.96.0.4", "http")
        .replace("  selector:", "  publishNotReadyAddresses: true\n  selector:");
    fixture.apply(&ready("ratings-x", "10.0.9.1", "False"));
    fixture.apply(&all);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9080", "10.0.9.1:9080"]);
}

const SLICE: &str = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ratings-abc
  namespace: default
  labels: {kubernetes.io/service-name: ratings}
addressType: IPv4
ports: [{name: http, port: 9999, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.3], conditions: {ready: true}}
- {addresses: [10.9.9.9], conditions: {ready: true}}
- {addresses: [10.9.9.8], conditions: {ready: false}}
- {addresses: [10.9.9.7], conditions: {ready: true, terminating: true}}
";

#[test]
fn slices_come_before_selectors() {
    let mut fixture = Fixture::new(&(bookinfo() + SLICE));
    assert_eq!(
        fixture.default_endpoints("default", "ratings", 9080),
        ["10.0.0.3:9999", "10.9.9.9:9999"]
    );
    let workload = |fixture: &Fixture, address: &str| {
        let port = fixture.port("default", "ratings", 9080);
        let snapshot = Arc::clone(fixture.snapshot());
        let cluster = snapshot.cluster(port.common.default_cluster).unwrap();
        let endpoint = cluster.endpoints.iter().find(|e| e.addr().to_string() == address).unwrap();
        endpoint.workload.as_ref().map(|w| w.name.to_string())
    };
    assert_eq!(workload(&fixture, "10.0.0.3:9999").as_deref(), Some("ratings-v1"));
    assert_eq!(workload(&fixture, "10.9.9.9:9999"), None);
    // The pod behind an address may be told later.
    fixture.apply(&pod("late", "10.9.9.9", "node-b", &[]));
    assert_eq!(workload(&fixture, "10.9.9.9:9999").as_deref(), Some("late"));
    fixture.remove(SLICE);
    assert_eq!(fixture.default_endpoints("default", "ratings", 9080), ["10.0.0.3:9080"]);
}

/// A pod that a slice names may be of the mesh although nothing is known of it yet, or of its
/// address: until then nobody is sent there.
#[test]
fn an_endpoint_that_names_a_pod_waits_for_the_pod() {
    let slice = SLICE.replace(
        "{addresses: [10.9.9.9], ",
        "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: late, namespace: default}, ",
    );
    let mut fixture = Fixture::new(&(bookinfo() + &slice));
    let endpoints = |fixture: &Fixture| fixture.default_endpoints("default", "ratings", 9080);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9999"]);
    // Another pod, outside the mesh, had the address before.
    let outside = "    istio.io/dataplane-mode: none\n";
    let before = pod("before", "10.9.9.9", "node-b", &[])
        .replace("  labels:\n", &format!("  labels:\n{outside}"));
    fixture.apply(&before);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9999"]);
    // It is known, without its address; then with it.
    let late = pod("late", "10.9.9.9", "node-b", &[]);
    fixture.apply(&late.replace("10.9.9.9", "10.9.9.1"));
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9999"]);
    fixture.remove(&before);
    fixture.apply(&late);
    assert_eq!(endpoints(&fixture), ["10.0.0.3:9999", "10.9.9.9:9999"]);
}

#[test]
fn headless_services_tell_the_protocol_of_their_pods() {
    let yaml = bookinfo()
        + &service("db", "None", "mysql")
            .replace("app: db", "app: ratings")
            .replace("9080", "3306")
        + &service("plain", "10.96.3.3", "tcp")
            .replace("app: plain", "app: ratings")
            .replace("port: 9080, targetPort: web", "port: 1, targetPort: 3306");
    let yaml = yaml.replace("3306, targetPort: web", "3306");
    let fixture = Fixture::new(&yaml);
    let snapshot = fixture.snapshot();
    let pod = WorkloadId::new("default", "ratings-v1");
    // Of two services that lead to one port the headless one speaks for it.
    let target = snapshot.target_port(&pod, 3306).unwrap();
    assert_eq!((&*target.service.name, target.protocol), ("db", AppProtocol::ServerFirst));
    assert!(target.service.is_headless());
    assert_eq!(snapshot.target_port(&pod, 9080).unwrap().protocol, AppProtocol::Http);
    assert!(snapshot.target_port(&pod, 3307).is_none());
    assert_eq!(snapshot.targets.get(&pod).unwrap().len(), 3);
    assert_eq!(fixture.default_endpoints("default", "db", 3306), ["10.0.0.3:3306"]);
}

#[test]
fn an_address_of_two_services_belongs_to_the_first() {
    let mut fixture = Fixture::new(&service("b", "10.96.7.7", "http"));
    assert_eq!(outbound(&fixture, "10.96.7.7:9080"), "b.default.svc.cluster.local:9080");
    fixture.apply(&service("a", "10.96.7.7", "http"));
    assert_eq!(outbound(&fixture, "10.96.7.7:9080"), "a.default.svc.cluster.local:9080");
    fixture.remove(&service("a", "10.96.7.7", "http"));
    assert_eq!(outbound(&fixture, "10.96.7.7:9080"), "b.default.svc.cluster.local:9080");
}

#[test]
fn services_that_cannot_be_served_say_so() {
    let external = "---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: default}
spec: {type: ExternalName, externalName: example.com}
";
    let mut fixture = Fixture::new(&(bookinfo() + external));
    assert!(fixture.snapshot().service("default", "far").is_none());
    let messages = fixture.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].starts_with("Service default/far: spec.type: warning: ExternalName"));
    // A change that makes its routes be compiled again does not silence it.
    fixture.apply(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: far, namespace: default}
spec: {hosts: [far], http: [{route: [{destination: {host: details}}]}]}
",
    );
    assert_eq!(fixture.messages(), messages);
    fixture.remove(external);
    assert_eq!(fixture.messages(), Vec::<String>::new());
}
