//! Which endpoints a node uses, by where they are.

use super::*;

fn node(name: &str, region: &str, zone: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}
"
    )
}

/// `web` with a pod on each of five nodes: this one, two more of its zone and region, and others.
fn world(service: &str) -> String {
    let nodes = node("node-a", "r1", "z1")
        + &node("node-b", "r1", "z1")
        + &node("node-c", "r1", "z2")
        + &node("node-d", "r2", "z1")
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-e}\n";
    let pods: String = ["e", "d", "c", "b", "a"]
        .iter()
        .enumerate()
        .map(|(i, n)| {
            pod(
                &format!("web-{n}"),
                &format!("10.0.0.{}", i + 1),
                &format!("node-{n}"),
                &[("app", "web")],
            )
        })
        .collect();
    nodes + &pods + service
}

fn web(metadata: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default{metadata}}}
spec:
  clusterIP: 10.96.0.9
  selector: {{app: web}}
  ports: [{{name: http, port: 9080, targetPort: web}}]
{spec}"
    )
}

/// Nodes of the endpoints, in groups.
fn groups(fixture: &Fixture) -> Vec<Vec<String>> {
    let id = fixture.port("default", "web", 9080).common.default_cluster;
    let cluster = fixture.snapshot().cluster(id).unwrap();
    let mut groups = Vec::new();
    let mut tried: Vec<usize> = Vec::new();
    while tried.len() < cluster.endpoints.len() {
        let end = cluster.candidates(&tried).len();
        let of = |e: &Arc<crate::model::Endpoint>| e.workload.as_ref().unwrap().node.to_string();
        groups.push(cluster.endpoints[tried.len()..end].iter().map(of).collect());
        tried = (0..end).collect();
    }
    groups
}

#[test]
fn services_say_how_near_their_endpoints_should_be() {
    let all: &[&[&str]] = &[&["node-e", "node-d", "node-c", "node-b", "node-a"]];
    let zone: &[&[&str]] = &[&["node-b", "node-a"], &["node-c"], &["node-e", "node-d"]];
    let own: &[&[&str]] = &[&["node-a"], &["node-b"], &["node-c"], &["node-e", "node-d"]];
    let annotated = |value: &str| {
        format!(", annotations: {{networking.istio.io/traffic-distribution: {value}}}")
    };
    let field = |value: &str| format!("  trafficDistribution: {value}\n");
    for (metadata, spec, expected) in [
        (String::new(), String::new(), all),
        (String::new(), field("PreferClose"), zone),
        (String::new(), field("PreferSameZone"), zone),
        (String::new(), field("PreferSameNode"), own),
        (annotated("PreferClose"), String::new(), zone),
        (annotated("PreferSameNode"), String::new(), own),
        // The field comes first.
        (annotated("PreferSameNode"), field("PreferSameZone"), zone),
        (String::new(), "  internalTrafficPolicy: Cluster\n".to_owned(), all),
        (String::new(), "  internalTrafficPolicy: Local\n".to_owned(), &[&["node-a"]]),
    ] {
        let fixture = Fixture::new(&world(&web(&metadata, &spec)));
        assert_eq!(groups(&fixture), expected, "{metadata} {spec}");
    }
    let fixture = Fixture::new(&world(&web("", &field("Nearby"))));
    assert_eq!(groups(&fixture), all);
    assert!(fixture.messages().iter().any(|m| m.contains("\"Nearby\" is not known")));
}

#[test]
fn what_happens_to_pods_and_nodes_is_followed() {
    let close = web("", "  trafficDistribution: PreferClose\n");
    let mut fixture = Fixture::new(&world(&close));
    let before = fixture.snapshot().version;
    // The zone dies: its neighbours come first.
    for name in ["a", "b"] {
        fixture.remove(&pod(&format!("web-{name}"), "10.0.0.9", "node-a", &[]));
    }
    assert_eq!(groups(&fixture), [&["node-c"][..], &["node-e", "node-d"]]);
    // A node says where it is.
    fixture.apply(&node("node-e", "r1", "z1"));
    assert_eq!(groups(&fixture), [["node-e"], ["node-c"], ["node-d"]]);
    // What a node says besides matters to nobody.
    assert!(fixture.snapshot().version > before);
    let before = fixture.snapshot().version;
    fixture.apply(&node("node-e", "r1", "z1").replace("labels: {", "labels: {x: y, "));
    assert_eq!(fixture.snapshot().version, before);
    // And this node forgets where it is.
    fixture.remove(&node("node-a", "r1", "z1"));
    assert_eq!(groups(&fixture), [["node-e", "node-d", "node-c"]]);
}

#[test]
fn local_never_spills_and_says_why() {
    let local = web("", "  internalTrafficPolicy: Local\n");
    let mut fixture = Fixture::new(&world(&local));
    fixture.remove(&pod("web-a", "10.0.0.5", "node-a", &[]));
    let id = fixture.port("default", "web", 9080).common.default_cluster;
    let cluster = fixture.snapshot().cluster(id).unwrap();
    assert!(cluster.endpoints.is_empty());
    assert!(cluster.why_none().contains("internalTrafficPolicy: Local"), "{}", cluster.why_none());
    fixture.apply(&web("", ""));
    let cluster = fixture.snapshot().cluster(id).unwrap();
    assert_eq!(cluster.endpoints.len(), 4);
    assert!(!cluster.why_none().contains("Local"));
}

/// A slice of `web` with an endpoint for each (address, more fields).
fn slice(endpoints: &[(&str, &str)]) -> String {
    let list: String =
        endpoints.iter().map(|(ip, more)| format!("- {{addresses: [{ip}]{more}}}\n")).collect();
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{list}"
    )
}

fn addresses(fixture: &Fixture) -> (Vec<String>, Vec<usize>) {
    let id = fixture.port("default", "web", 9080).common.default_cluster;
    let cluster = fixture.snapshot().cluster(id).unwrap();
    (fixture.endpoints(id), cluster.locality.ends.to_vec())
}

#[test]
fn slices_bring_nodes_zones_and_hints() {
    let nodes = node("node-a", "r1", "z1") + &node("node-b", "r1", "z1");
    let close = nodes.clone() + &web("", "  trafficDistribution: PreferSameNode\n");
    let mut fixture = Fixture::new(
        &(close
            + &slice(&[
                ("10.9.0.1", ", zone: z2"),
                ("10.9.0.2", ", zone: z1"),
                ("10.9.0.3", ", nodeName: node-b, zone: z9"),
                ("10.9.0.4", ", nodeName: node-a"),
            ])),
    );
    let expected = ["10.9.0.4:8080", "10.9.0.2:8080", "10.9.0.3:8080", "10.9.0.1:8080"];
    assert_eq!(addresses(&fixture), (expected.map(str::to_owned).to_vec(), vec![1, 3]));

    let hint = |zone: &str| format!(", hints: {{forZones: [{{name: {zone}}}]}}");
    let (here, there) = (hint("z1"), hint("z2"));
    // Hints are followed where every endpoint has some and one is for here.
    fixture.apply(&web("", ""));
    fixture.apply(&slice(&[("10.9.0.1", &there), ("10.9.0.2", &here)]));
    let expected = ["10.9.0.2:8080", "10.9.0.1:8080"].map(str::to_owned).to_vec();
    assert_eq!(addresses(&fixture), (expected, vec![1]));
    for without in
        [[("10.9.0.1", ""), ("10.9.0.2", &here)], [("10.9.0.1", &there), ("10.9.0.2", &there)]]
    {
        fixture.apply(&slice(&without));
        let expected = ["10.9.0.1:8080", "10.9.0.2:8080"].map(str::to_owned).to_vec();
        assert_eq!(addresses(&fixture), (expected, vec![]), "{without:?}");
    }
}
