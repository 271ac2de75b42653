//! Pods: what is known of them, which are captured, what holds on the way in; MeshConfig.

use fairlead_types::WorkloadId;

use super::*;
use crate::model::{MtlsMode, OutboundPolicy, PeerWire, Workload};

fn at(fixture: &Fixture, ip: &str) -> Arc<Workload> {
    Arc::clone(fixture.snapshot().workloads.get(&ip.parse::<std::net::IpAddr>().unwrap()).unwrap())
}

#[test]
fn names_identity_and_enrolment() {
    let mut fixture = Fixture::new(&bookinfo());
    let reviews = at(&fixture, "10.0.1.2");
    assert_eq!(reviews.identity.to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
    assert_eq!((&*reviews.app, &*reviews.version), ("reviews", "v2"));
    assert_eq!((&*reviews.canonical_name, &*reviews.canonical_revision), ("reviews", "v2"));
    assert_eq!((reviews.enrolled, reviews.wire), (true, PeerWire::Native));

    let unlabelled = "---
apiVersion: v1
kind: Namespace
metadata: {name: default}
";
    fixture.apply(unlabelled);
    assert_eq!(at(&fixture, "10.0.1.2").wire, PeerWire::Plain);
    assert!(fixture.snapshot().inbound.is_empty());
    // Endpoints see the workload as it is now.
    let port = fixture.port("default", "reviews", 9080);
    let cluster = fixture.snapshot().cluster(port.common.default_cluster).unwrap();
    assert!(cluster.endpoints.iter().all(|e| !e.workload.as_ref().unwrap().enrolled));
}

#[test]
fn wires() {
    let with = |annotations: &str, labels: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: x, annotations: {{{annotations}}}, labels: {{{labels}}}}}
spec: {{nodeName: node-b, containers: [{{name: main}}]}}
status: {{phase: Running, podIP: 10.0.0.1}}
"
        )
    };
    let on = "fairlead.io/mesh: enabled";
    for (annotations, labels, wire) in [
        ("", "", PeerWire::Plain),
        ("", on, PeerWire::Native),
        ("ambient.istio.io/redirection: enabled", "", PeerWire::Hbone),
        (
            "ambient.istio.io/redirection: enabled",
            "istio.io/dataplane-mode: ambient",
            PeerWire::Hbone,
        ),
        ("ambient.istio.io/redirection: enabled, fairlead.io/netns: /run/p", on, PeerWire::Native),
        ("", "networking.istio.io/tunnel: http", PeerWire::Hbone),
        ("fairlead.io/transport: hbone", on, PeerWire::Hbone),
        ("fairlead.io/transport: native", "networking.istio.io/tunnel: http", PeerWire::Native),
    ] {
        let fixture = Fixture::new(&with(annotations, labels));
        assert_eq!(at(&fixture, "10.0.0.1").wire, wire, "{annotations} / {labels}");
    }
    let fixture = Fixture::new(&with("fairlead.io/transport: carrier-pigeon", on));
    assert!(fixture.messages()[0].contains("native or hbone"));
}

#[test]
fn local_pods_and_their_inbound_side() {
    let annotated = pod("ratings-v9", "10.0.0.9", "node-a", &[("app", "ratings")]).replace(
        "  labels:\n",
        "  annotations:
    fairlead.io/netns: /run/netns/ratings
    traffic.sidecar.istio.io/excludeOutboundPorts: '25, 443'
    traffic.sidecar.istio.io/excludeInboundPorts: '9999,nonsense'
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.1.0.0/16,192.0.2.7
  labels:\n",
    );
    let fixture = Fixture::new(&(bookinfo() + &annotated));
    let snapshot = fixture.snapshot();
    let mut local: Vec<&str> = snapshot.local.keys().map(WorkloadId::as_str).collect();
    local.sort_unstable();
    assert_eq!(
        local,
        [
            "default/details-v1",
            "default/productpage-v1",
            "default/ratings-v9",
            "default/reviews-v1"
        ]
    );
    let ratings = &snapshot.local[&WorkloadId::new("default", "ratings-v9")];
    assert_eq!(ratings.netns.as_deref(), Some(std::path::Path::new("/run/netns/ratings")));
    assert_eq!(*ratings.exclude_outbound_ports, [25, 443]);
    assert_eq!(*ratings.workload.exclude_inbound_ports, [9999]);
    let ranges: Vec<String> =
        ratings.exclude_outbound_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.1.0.0/16", "192.0.2.7/32"]);
    let messages = fixture.messages();
    assert!(messages.len() == 1 && messages[0].contains("\"nonsense\""), "{messages:?}");

    let inbound = snapshot.inbound_at("10.0.0.9".parse().unwrap()).unwrap();
    let port = inbound.port(9080).unwrap();
    assert_eq!(port.service.as_ref().unwrap().name.as_ref(), "ratings");
    assert_eq!(inbound.mtls(9080), MtlsMode::Permissive);
    assert!(inbound.port(80).is_none() && inbound.authz.is_empty());
    assert!(snapshot.inbound_at("10.0.0.3".parse().unwrap()).is_none(), "on another node");
}

#[test]
fn what_alone_is_captured_and_what_the_kubelet_asks() {
    let annotated = |annotations: &str| {
        pod("ratings-v9", "10.0.0.9", "node-a", &[("app", "ratings")])
            .replace("  labels:\n", &format!("  annotations: {{{annotations}}}\n  labels:\n"))
    };
    let local = |annotations: &str| {
        let fixture = Fixture::new(&(bookinfo() + &annotated(annotations)));
        let local = fixture.snapshot().local[&WorkloadId::new("default", "ratings-v9")].clone();
        (local, fixture.messages())
    };
    let (all, _) = local("");
    assert!(all.include_outbound_cidrs.is_none() && all.workload.include_inbound_ports.is_none());
    assert!(!all.workload.excludes(80));
    let (some, messages) = local(
        "traffic.sidecar.istio.io/includeOutboundIPRanges: '10.0.0.0/8,fd00::/8', \
         traffic.sidecar.istio.io/includeOutboundPorts: '443', \
         traffic.sidecar.istio.io/includeInboundPorts: '9080'",
    );
    assert!(messages.is_empty(), "{messages:?}");
    assert_eq!(some.include_outbound_cidrs.as_ref().map(|all| all.len()), Some(2));
    assert_eq!(*some.include_outbound_ports, [443]);
    assert!(some.workload.excludes(80) && !some.workload.excludes(9080));
    let (none, _) = local("traffic.sidecar.istio.io/includeInboundPorts: ''");
    assert!(none.workload.excludes(9080));
    let (star, _) = local("traffic.sidecar.istio.io/includeInboundPorts: '*'");
    assert!(!star.workload.excludes(9080));
    let (bypass, _) = local("ambient.istio.io/bypass-inbound-capture: 'true'");
    assert!(bypass.workload.excludes(9080));
    // What cannot be read leaves nothing out.
    let (wrong, messages) = local(
        "traffic.sidecar.istio.io/includeOutboundIPRanges: '10.0.0.0/8,x', \
         traffic.sidecar.istio.io/includeInboundPorts: '9080,70000', \
         ambient.istio.io/bypass-inbound-capture: 'yes'",
    );
    assert!(wrong.include_outbound_cidrs.is_none() && !wrong.workload.excludes(80));
    assert_eq!(messages.len(), 3, "{messages:?}");

    let probes = "  initContainers:\n  - name: s\n    startupProbe: {grpc: {port: 7000}}\n  \
                  containers:\n  - name: c\n    ports: [{name: web, containerPort: 8080}]\n    \
                  livenessProbe: {httpGet: {path: /, port: web}}\n    \
                  readinessProbe: {tcpSocket: {port: 9090}}\n    \
                  lifecycle: {preStop: {httpGet: {port: 8081}}, postStart: {exec: {command: [a]}}}\n  \
                  - name: d\n    livenessProbe: {httpGet: {port: 1, host: elsewhere}}\n";
    let plain =
        "  containers:\n  - name: main\n    ports:\n    - name: web\n      containerPort: 9080\n";
    let probed = annotated("").replace(plain, probes);
    let fixture = Fixture::new(&(bookinfo() + &probed));
    let local = &fixture.snapshot().local[&WorkloadId::new("default", "ratings-v9")];
    assert_eq!(*local.probe_ports, [7000, 8080, 8081, 9090]);
}

#[test]
fn excluded_inbound_ports_are_known_of_pods_elsewhere() {
    let labels = [("app", "reviews"), ("version", "v2")];
    let excluding = |ports: &str, more: &str| {
        pod("reviews-v2", "10.0.1.2", "node-b", &labels).replace(
            "  labels:\n",
            &format!(
                "  annotations: {{traffic.sidecar.istio.io/excludeInboundPorts: '{ports}'{more}}}
  labels:\n"
            ),
        )
    };
    let mut fixture = Fixture::new(&bookinfo());
    let before = at(&fixture, "10.0.1.2");
    assert!(before.exclude_inbound_ports.is_empty());
    fixture.apply(&excluding("9080, 9999", ""));
    let after = at(&fixture, "10.0.1.2");
    assert!(after.excludes(9080) && after.excludes(9999) && !after.excludes(9081));
    // The endpoints of its services know it too.
    let port = fixture.port("default", "reviews", 9080);
    let snapshot = fixture.snapshot();
    let endpoints = &snapshot.cluster(port.common.default_cluster).unwrap().endpoints;
    let known = |e: &crate::model::Endpoint| e.workload.as_ref().is_some_and(|w| w.excludes(9080));
    assert_eq!(endpoints.iter().filter(|e| known(e)).count(), 1);
    // HBONE comes to its own port.
    fixture.apply(&excluding("9080", ", fairlead.io/transport: hbone"));
    assert!(!at(&fixture, "10.0.1.2").excludes(9080));
}

#[test]
fn the_younger_of_two_pods_has_the_address() {
    let created = |name: &str, time: &str| {
        pod(name, "10.0.0.1", "node-b", &[])
            .replace("  labels:\n", &format!("  creationTimestamp: '{time}'\n  labels:\n"))
    };
    let (old, new) =
        (created("old", "2026-01-01T00:00:00Z"), created("new", "2026-01-02T00:00:00Z"));
    for order in [[&old, &new], [&new, &old]] {
        let mut fixture = Fixture::new(order[0]);
        fixture.apply(order[1]);
        assert_eq!(&*at(&fixture, "10.0.0.1").name, "new");
        fixture.remove(&new);
        assert_eq!(&*at(&fixture, "10.0.0.1").name, "old");
    }
}

#[test]
fn mesh_config_applies_and_goes() {
    let config = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: example.org
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    connectTimeout: 3s
    enableAutoMtls: false
    accessLogFile: /dev/stdout
    accessLogEncoding: JSON
    defaultHttpRetryPolicy: {attempts: 5, retryOn: 5xx}
";
    let mut fixture = Fixture::new(&bookinfo());
    let default_mesh = Arc::clone(&fixture.snapshot().mesh);
    assert_eq!(*default_mesh, crate::model::MeshSettings::default());
    fixture.apply(config);
    let mesh = Arc::clone(&fixture.snapshot().mesh);
    assert_eq!(mesh.outbound, OutboundPolicy::RegistryOnly);
    assert_eq!(mesh.default_retry.attempts, 5);
    assert_eq!(mesh.access_log.file.as_deref(), Some("/dev/stdout"));
    assert_eq!(
        at(&fixture, "10.0.1.2").identity.to_string(),
        "spiffe://example.org/ns/default/sa/reviews"
    );
    let port = fixture.port("default", "reviews", 9080);
    let policy = &fixture.snapshot().cluster(port.common.default_cluster).unwrap().policy;
    assert_eq!(policy.connect_timeout, std::time::Duration::from_secs(3));
    assert_eq!(policy.tls, crate::model::UpstreamTls::Disable);
    fixture.remove(config);
    assert_eq!(*fixture.snapshot().mesh, *default_mesh);
}

#[test]
fn a_refused_pod_is_enrolled_and_named() {
    let refused = |node: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata:
  name: odd
  namespace: default
  annotations: {{fairlead.io/refused: it is odd, fairlead.io/netns: /n/odd}}
spec: {{nodeName: {node}}}
"
        )
    };
    let mut fixture = Fixture::new(&(bookinfo() + &refused("node-a")));
    let odd = fairlead_types::WorkloadId::new("default", "odd");
    assert_eq!(fixture.snapshot().refused.get(&odd).map(|why| &**why), Some("it is odd"));
    let local = &fixture.snapshot().local[&odd];
    assert!(local.workload.enrolled && local.netns.is_some());
    // On another node, or outside the mesh, it is no business of ours.
    fixture.apply(&refused("node-b"));
    assert!(fixture.snapshot().refused.is_empty());
    fixture.apply(&refused("node-a"));
    assert_eq!(fixture.snapshot().refused.len(), 1);
    fixture.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n");
    assert!(fixture.snapshot().refused.is_empty());
}
