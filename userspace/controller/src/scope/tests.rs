use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_wire::config::{Fault, Rejection, Resource};
use prost::Message;
use serde_json::{Value, json};

use super::replicas::GRACE;
use super::verdicts::MAX_WAITING;
use super::*;

mod claims;
mod random;
mod replicas;
mod sharing;
mod verdicts;

/// A node as the controller sees it: it takes what it is told and says so.
struct Client {
    name: &'static str,
    ticket: Ticket,
    /// Versions by key.
    held: BTreeMap<String, (Key, String)>,
    /// How many objects it was sent in all.
    received: usize,
}

fn name_of(key: &Key) -> String {
    match key.namespace.as_str() {
        "" => format!("{} {}", key.kind, key.name),
        namespace => format!("{} {namespace}/{}", key.kind, key.name),
    }
}

impl Client {
    fn connect(world: &World, name: &'static str) -> Self {
        Self::resume(world, name, BTreeMap::new())
    }

    fn resume(world: &World, name: &'static str, held: BTreeMap<String, (Key, String)>) -> Self {
        let inventory = held.values().map(|(key, version)| Held {
            key: Some(key.clone()),
            version: version.clone(),
            rejected: None,
        });
        let ticket = world.connect(name, "1", inventory.collect());
        let mut client = Self { name, ticket, held, received: 0 };
        client.settle(world);
        client
    }

    /// Takes all that there is to take; refuses nothing.
    fn settle(&mut self, world: &World) {
        loop {
            let batch = world.take(&self.ticket).expect("the stream is there");
            self.received += batch.upserts.len();
            for bytes in &batch.upserts {
                let resource = Resource::decode(bytes.clone()).expect("a resource");
                let key = resource.key.expect("a key");
                self.held.insert(name_of(&key), (key, resource.version));
            }
            for key in &batch.removed {
                assert!(self.held.remove(&name_of(key)).is_some(), "{key:?} was not held");
            }
            world.acknowledge(&self.ticket, Ack::default());
            if batch.complete {
                assert!(!world.has_news(&self.ticket));
                return;
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }

    /// What is held of these kinds, without the kind where there is one only.
    fn of(&self, kinds: &[&str]) -> Vec<&str> {
        self.names().into_iter().filter(|n| kinds.iter().any(|k| n.starts_with(k))).collect()
    }
}

fn world() -> Arc<World> {
    let world = World::new("root", "cluster.local");
    for kind in Kind::ALL {
        let version = kind.versions().first().expect("a version");
        world.set_api_version(*kind, &api_version(*kind, version));
    }
    world
}

fn api_version(kind: Kind, version: &str) -> String {
    match kind.group() {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

fn put(world: &World, kind: Kind, object: Value) -> Event {
    let version = kind.versions().first().expect("a version");
    let raw: Raw = serde_json::from_value(object).expect("an object");
    world.apply(kind, &api_version(kind, version), raw).1
}

fn drop_object(world: &World, kind: Kind, namespace: &str, name: &str) {
    assert!(world.remove(&ObjectKey::new(kind, namespace, name)), "{kind} {namespace}/{name}");
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "generation": 1})
}

fn namespace(world: &World, name: &str, enrols: bool) {
    let labels = if enrols { json!({"fairlead.io/mesh": "enabled"}) } else { json!({}) };
    put(world, Kind::Namespace, json!({"metadata": {"name": name, "labels": labels}}));
}

fn pod(world: &World, namespace: &str, name: &str, node: &str, ip: &str) -> Event {
    put(
        world,
        Kind::Pod,
        json!({"metadata": meta(namespace, name), "spec": {"nodeName": node},
               "status": {"phase": "Running", "podIPs": [{"ip": ip}]}}),
    )
}

/// A service with a slice that names pods.
fn service(world: &World, namespace: &str, name: &str, export: Option<&str>, pods: &[&str]) {
    let mut metadata = meta(namespace, name);
    if let Some(export) = export {
        metadata["annotations"] = json!({"networking.istio.io/exportTo": export});
    }
    let ip = format!("10.96.{}.{}", namespace.len(), name.len());
    put(
        world,
        Kind::Service,
        json!({"metadata": metadata, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}),
    );
    slice(world, namespace, name, pods);
}

fn slice(world: &World, namespace: &str, name: &str, pods: &[&str]) -> Event {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod", "name": pod}}))
        .collect();
    let mut metadata = meta(namespace, &format!("{name}-1"));
    metadata["labels"] = json!({"kubernetes.io/service-name": name});
    put(
        world,
        Kind::EndpointSlice,
        json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints}),
    )
}

fn rule(world: &World, kind: Kind, namespace: &str, name: &str, spec: Value) -> Event {
    put(world, kind, json!({"metadata": meta(namespace, name), "spec": spec}))
}

/// Two namespaces in the mesh, one that is not; a pod in each, the first on node `one`.
fn three_namespaces() -> Arc<World> {
    let world = world();
    for (name, enrols) in [("a", true), ("b", true), ("c", false)] {
        namespace(&world, name, enrols);
        service(&world, name, "web", None, &["web-0"]);
        for kind in [Kind::AuthorizationPolicy, Kind::PeerAuthentication] {
            rule(&world, kind, name, "p", json!({}));
        }
        rule(&world, Kind::DestinationRule, name, "r", json!({"host": "web"}));
    }
    rule(&world, Kind::AuthorizationPolicy, "root", "all", json!({}));
    pod(&world, "a", "web-0", "one", "10.0.0.1");
    pod(&world, "b", "web-0", "two", "10.0.0.2");
    pod(&world, "c", "web-0", "three", "10.0.0.3");
    for node in ["one", "two", "three"] {
        put(&world, Kind::Node, json!({"metadata": {"name": node}}));
    }
    world
}

#[test]
fn a_node_gets_what_its_pods_may_reach() {
    let world = three_namespaces();
    let one = Client::connect(&world, "one");
    assert_eq!(
        one.names(),
        [
            "AuthorizationPolicy a/p",
            "AuthorizationPolicy root/all",
            "DestinationRule a/r",
            "DestinationRule b/r",
            "DestinationRule c/r",
            "EndpointSlice a/web-1",
            "EndpointSlice b/web-1",
            "EndpointSlice c/web-1",
            "Namespace a",
            "Namespace b",
            "Namespace c",
            "Node one",
            "Node three",
            "Node two",
            "PeerAuthentication a/p",
            "Pod a/web-0",
            "Pod b/web-0",
            "Pod c/web-0",
            "Service a/web",
            "Service b/web",
            "Service c/web",
        ]
    );
}

#[test]
fn a_node_without_enrolled_pods_gets_next_to_nothing() {
    let world = three_namespaces();
    let mut three = Client::connect(&world, "three");
    let little = ["Namespace a", "Namespace b", "Namespace c", "Node three", "Pod c/web-0"];
    assert_eq!(three.names(), little);
    // Its pod joins and leaves.
    namespace(&world, "c", true);
    three.settle(&world);
    assert!(three.names().contains(&"Service a/web"), "{:?}", three.names());
    assert!(three.names().contains(&"AuthorizationPolicy c/p"));
    namespace(&world, "c", false);
    three.settle(&world);
    assert_eq!(three.names(), little);
    // A pod may say it by itself; one that is over is no client.
    for (phase, there) in [("Pending", true), ("Succeeded", false)] {
        let mut metadata = meta("c", "job");
        metadata["labels"] = json!({"fairlead.io/mesh": "enabled"});
        let spec = json!({"nodeName": "three"});
        put(
            &world,
            Kind::Pod,
            json!({"metadata": metadata, "spec": spec, "status": {"phase": phase}}),
        );
        three.settle(&world);
        assert_eq!(three.names().contains(&"Service a/web"), there, "{phase}");
    }
}

#[test]
fn export_to_is_kept() {
    let world = three_namespaces();
    service(&world, "b", "private", Some("."), &["web-0"]);
    service(&world, "b", "for-a", Some("a, x"), &[]);
    service(&world, "b", "for-x", Some("x"), &[]);
    rule(&world, Kind::VirtualService, "b", "own", json!({"hosts": ["x"], "exportTo": ["."]}));
    rule(&world, Kind::VirtualService, "b", "all", json!({"hosts": ["y"]}));
    let mut one = Client::connect(&world, "one");
    assert_eq!(
        one.of(&["Service", "VirtualService"]),
        [
            "Service a/web",
            "Service b/for-a",
            "Service b/web",
            "Service c/web",
            "VirtualService b/all"
        ]
    );
    service(&world, "b", "for-a", Some("~"), &[]);
    rule(&world, Kind::VirtualService, "b", "own", json!({"hosts": ["x"]}));
    one.settle(&world);
    let after = one.of(&["Service b", "EndpointSlice b", "VirtualService"]);
    let expected = ["EndpointSlice b/web-1", "Service b/web", "VirtualService b/all"];
    assert_eq!(after, [&expected[..], &["VirtualService b/own"]].concat());
    // The defaults of the mesh.
    let mesh = json!({"mesh": "defaultServiceExportTo: [\".\"]\n"});
    put(&world, Kind::ConfigMap, json!({"metadata": meta("root", "istio"), "data": mesh}));
    one.settle(&world);
    assert_eq!(one.of(&["Service", "Pod"]), ["Pod a/web-0", "Service a/web"]);
}

#[test]
fn sidecars_narrow_what_is_reached() {
    let world = three_namespaces();
    let mut one = Client::connect(&world, "one");
    let two = Client::connect(&world, "two");
    let sidecar = |namespace: &str, hosts: Value| {
        let spec = json!({"egress": [{"hosts": hosts}]});
        rule(&world, Kind::Sidecar, namespace, "default", spec);
    };
    sidecar("a", json!(["./*", "b/web.b.svc.cluster.local"]));
    one.settle(&world);
    assert_eq!(
        one.of(&["Service", "Pod", "DestinationRule", "EndpointSlice", "Sidecar"]),
        [
            "DestinationRule a/r",
            "DestinationRule b/r",
            "EndpointSlice a/web-1",
            "EndpointSlice b/web-1",
            "Pod a/web-0",
            "Pod b/web-0",
            "Service a/web",
            "Service b/web",
            "Sidecar a/default"
        ]
    );
    assert!(!world.has_news(&two.ticket), "{} has another Sidecar", two.name);
    // A route leads to what is not named.
    let route =
        json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web.c"}}]}]});
    rule(&world, Kind::VirtualService, "a", "v", route);
    one.settle(&world);
    assert!(one.names().contains(&"Service c/web") && one.names().contains(&"Pod c/web-0"));
    drop_object(&world, Kind::VirtualService, "a", "v");
    one.settle(&world);
    assert!(!one.names().contains(&"Service c/web") && !one.names().contains(&"Pod c/web-0"));
    // Some workloads may reach more.
    let more =
        json!({"workloadSelector": {"labels": {"app": "x"}}, "egress": [{"hosts": ["c/*"]}]});
    rule(&world, Kind::Sidecar, "a", "some", more);
    one.settle(&world);
    assert!(one.names().contains(&"Service c/web"));
    drop_object(&world, Kind::Sidecar, "a", "some");
    drop_object(&world, Kind::Sidecar, "a", "default");
    // That of the root namespace is for all who have none.
    sidecar("root", json!(["./*"]));
    one.settle(&world);
    assert_eq!(one.of(&["Service", "Pod"]), ["Pod a/web-0", "Service a/web"]);
}

#[test]
fn what_changes_nothing_costs_nothing() {
    let world = three_namespaces();
    let mut one = Client::connect(&world, "one");
    let before = one.received;
    assert_eq!(pod(&world, "b", "web-0", "two", "10.0.0.2"), Event::Same);
    put(
        &world,
        Kind::Node,
        json!({"metadata": {"name": "two", "resourceVersion": "9"}, "status": {"conditions": [1]}}),
    );
    assert!(!world.has_news(&one.ticket));
    // What is changed often is sent once, in its last state.
    for ip in 1..50 {
        pod(&world, "b", "web-0", "two", &format!("10.0.1.{ip}"));
    }
    one.settle(&world);
    assert_eq!(one.received, before + 1);
}

#[test]
fn a_stream_resumes_with_the_difference() {
    let world = three_namespaces();
    let one = Client::connect(&world, "one");
    let (held, all) = (one.held.clone(), one.received);
    assert_eq!(all, held.len());
    let again = Client::resume(&world, "one", held.clone());
    assert_eq!((again.received, again.held.len()), (0, held.len()));
    assert!(world.take(&one.ticket).is_none(), "the stream before is over");
    // A daemon that takes over from this one has a stream beside its own; no third one has.
    let successor = world.connect("one", "2", Vec::new());
    assert!(world.has_news(&successor) && world.take(&again.ticket).is_some());
    assert_eq!(world.connected().len(), 1);
    let third = world.connect("one", "3", Vec::new());
    assert!(world.take(&again.ticket).is_none() && world.take(&successor).is_some());
    let renewed = world.connect("one", "2", Vec::new());
    let renewed_again = world.connect("one", "3", Vec::new());
    assert!(world.take(&third).is_none() && world.take(&renewed).is_some());
    let third = renewed_again;
    assert!(world.take(&successor).is_none() && world.take(&third).is_some());
    world.disconnect(&third);
    assert_eq!(world.connected().len(), 1);
    world.disconnect(&renewed);
    assert_eq!(world.connected().len(), 0);
    let again = Client::resume(&world, "one", held.clone());
    world.disconnect(&one.ticket);
    // Another replica, another history.
    world.disconnect(&again.ticket);
    let other = three_namespaces();
    pod(&other, "b", "web-0", "two", "10.0.0.7");
    pod(&other, "b", "web-0", "two", "10.0.0.2");
    drop_object(&other, Kind::Service, "c", "web");
    rule(&other, Kind::AuthorizationPolicy, "a", "p", json!({"action": "DENY"}));
    let resumed = Client::resume(&other, "one", held.clone());
    assert_eq!(resumed.received, 1, "the policy");
    assert!(!resumed.names().contains(&"Service c/web"));
    assert_eq!(resumed.held.len(), held.len() - 1);
    // What moved to another node meanwhile is taken back.
    let moved = Client::resume(&three_namespaces(), "three", held);
    assert!(!moved.names().contains(&"Pod a/web-0") && !moved.names().contains(&"Service a/web"));
}

#[test]
fn addresses_are_looked_up() {
    let world = three_namespaces();
    rule(&world, Kind::Sidecar, "a", "default", json!({"egress": [{"hosts": ["./*"]}]}));
    let mut one = Client::connect(&world, "one");
    assert!(!one.names().contains(&"Pod b/web-0"));
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert_eq!(world.look_up(&one.ticket, &[ip("192.0.2.1")]), LookedUp::default());
    assert!(world.look_up(&one.ticket, &[ip("192.0.2.1"), ip("::ffff:10.0.0.2")]).known);
    one.settle(&world);
    assert!(one.names().contains(&"Pod b/web-0") && !one.names().contains(&"Service b/web"));
    assert!(world.look_up(&one.ticket, &[ip("10.96.1.3")]).known, "services have one address here");
    one.settle(&world);
    assert!(one.names().contains(&"EndpointSlice b/web-1"), "{:?}", one.names());
    // From then on it is told of changes.
    drop_object(&world, Kind::Pod, "b", "web-0");
    one.settle(&world);
    assert!(!one.names().contains(&"Pod b/web-0"));
    // In the range of a node's pods, it is nobody's for now, and not outside of the mesh.
    let node = json!({"metadata": {"name": "two"}, "spec": {"podCIDRs": ["10.0.0.0/24"]}});
    put(&world, Kind::Node, node);
    let asked = [ip("10.0.0.2"), ip("10.0.0.1"), ip("10.0.1.2")];
    let found = world.look_up(&one.ticket, &asked);
    assert_eq!(found, LookedUp { known: true, unclaimed: vec![ip("10.0.0.2")] });
    put(&world, Kind::Node, json!({"metadata": {"name": "two"}}));
    assert!(world.look_up(&one.ticket, &asked).unclaimed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn verdicts_say_who_took_what() {
    let world = three_namespaces();
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "root", "all");
    let verdicts = Verdicts::new(Arc::clone(&world));
    let changed = || {
        let keys = futures_util::FutureExt::now_or_never(verdicts.changed()).unwrap_or_default();
        keys.contains(&key)
    };
    assert!(changed() && !changed());
    let one = Client::connect(&world, "one");
    let two = world.connect("two", "1", Vec::new());
    let count = || {
        let verdict = verdicts.of(&key).expect("a verdict");
        (verdict.interested, verdict.took, verdict.refused)
    };
    assert_eq!((count(), changed()), ((2, 1, 0), true));
    // The other refuses it.
    let refuse = |ticket: &Ticket| {
        while world.has_news(ticket) {
            world.take(ticket).expect("the stream");
            let rejection = Rejection {
                key: Some(Key {
                    kind: "AuthorizationPolicy".into(),
                    namespace: "root".into(),
                    name: "all".into(),
                    ..Key::default()
                }),
                faults: vec![
                    Fault {
                        field: "spec".into(),
                        message: "x".repeat(9999),
                        allowed: String::new()
                    };
                    99
                ],
                ..Rejection::default()
            };
            let ack = Ack { nonce: 0, rejected: vec![rejection] };
            assert_eq!(world.acknowledge(ticket, ack), 1);
        }
    };
    refuse(&two);
    assert_eq!((count(), changed()), ((2, 1, 1), true));
    let verdict = verdicts.of(&key).expect("a verdict");
    let (node, why) = &verdict.rejections[0];
    assert_eq!((&**node, why.faults.len()), ("two", 16));
    assert!(why.faults[0].message.len() < 1000);
    // A new version is a new question.
    rule(&world, Kind::AuthorizationPolicy, "root", "all", json!({"action": "DENY"}));
    assert_eq!(count(), (2, 0, 0));
    refuse(&two);
    assert_eq!(count(), (2, 0, 1));
    world.disconnect(&two);
    world.disconnect(&one.ticket);
    // They may come back in a moment.
    assert_eq!((count(), changed()), ((2, 0, 1), true));
    tokio::time::advance(GRACE).await;
    assert!(changed(), "their time is over");
    assert_eq!(count(), (0, 0, 0));
    drop_object(&world, Kind::AuthorizationPolicy, "root", "all");
    assert!(changed() && verdicts.of(&key).is_none());
}

#[test]
fn policies_come_before_pods_and_go_after_them() {
    let world = world();
    namespace(&world, "a", true);
    pod(&world, "a", "web-0", "one", "10.0.0.1");
    rule(&world, Kind::AuthorizationPolicy, "a", "p", json!({}));
    // More than fits into one message.
    for n in 0..40 {
        let hosts: Vec<String> = (0..9000).map(|h| format!("h{h}.example.com")).collect();
        rule(&world, Kind::ServiceEntry, "a", &format!("s{n}"), json!({"hosts": hosts}));
    }
    let ticket = world.connect("one", "1", Vec::new());
    let (mut order, mut batches) = (Vec::new(), 0);
    loop {
        let batch = world.take(&ticket).expect("the stream");
        world.acknowledge(&ticket, Ack::default());
        batches += 1;
        let size: usize = batch.upserts.iter().map(bytes::Bytes::len).sum();
        assert!(size <= 3 << 20, "{size}");
        let kind = |bytes: &bytes::Bytes| {
            Resource::decode(bytes.clone()).expect("a resource").key.expect("a key").kind
        };
        order.extend(batch.upserts.iter().map(kind));
        if batch.complete {
            break;
        }
    }
    assert!(batches > 1);
    let at = |kind: &str| order.iter().position(|k| k == kind).expect("it was sent");
    assert!(at("AuthorizationPolicy") < at("ServiceEntry") && at("ServiceEntry") < at("Pod"));
    assert_eq!(order.len(), 43);
}

#[test]
fn who_runs_where() {
    let world = three_namespaces();
    assert!(world.runs_on("one", "a", "default"));
    for (node, namespace, account) in [
        ("two", "a", "default"),
        ("one", "b", "default"),
        ("one", "a", "other"),
        ("", "a", "default"),
    ] {
        assert!(!world.runs_on(node, namespace, account), "{node} {namespace} {account}");
    }
    drop_object(&world, Kind::Pod, "a", "web-0");
    assert!(!world.runs_on("one", "a", "default"));
}

#[test]
fn a_sidecar_of_the_root_namespace_means_each_clients_own() {
    let world = three_namespaces();
    service(&world, "root", "web", None, &[]);
    rule(&world, Kind::Sidecar, "root", "default", json!({"egress": [{"hosts": ["./*"]}]}));
    let one = Client::connect(&world, "one");
    assert_eq!(one.of(&["Service"]), ["Service a/web"], "and not that of the root namespace");
}
