//! Whatever happens in whatever order: a node holds in the end what a node gets that comes then.

use super::*;

/// A small generator (xorshift): the same numbers each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("small")
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }
}

const NAMESPACES: [&str; 4] = ["a", "b", "c", "root"];
const NAMES: [&str; 3] = ["x", "y", "z"];
const NODES: [&str; 3] = ["one", "two", "three"];

fn change(world: &World, dice: &mut Dice) {
    let (of, name) = (dice.pick(&NAMESPACES), dice.pick(&NAMES));
    let kinds = [
        Kind::Namespace,
        Kind::Pod,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::Sidecar,
        Kind::AuthorizationPolicy,
        Kind::ConfigMap,
        Kind::Node,
    ];
    let kind = kinds[dice.roll(kinds.len())];
    if dice.roll(3) == 0 {
        let key = match kind {
            Kind::Namespace => ObjectKey::new(kind, "", of),
            Kind::Node => ObjectKey::new(kind, "", dice.pick(&NODES)),
            Kind::ConfigMap => ObjectKey::new(kind, "root", "istio"),
            Kind::EndpointSlice => ObjectKey::new(kind, of, &format!("{name}-1")),
            _ => ObjectKey::new(kind, of, name),
        };
        world.remove(&key);
        return;
    }
    let exports = [None, Some("*"), Some("."), Some("b"), Some("~")];
    let export = exports[dice.roll(exports.len())];
    match kind {
        Kind::Namespace => namespace(world, of, dice.roll(2) == 0),
        Kind::Pod => {
            let ip = format!("10.0.0.{}", dice.roll(9));
            pod(world, of, name, dice.pick(&NODES), &ip);
        }
        Kind::Service => {
            let pods = [dice.pick(&NAMES)];
            service(world, of, name, export, &pods);
        }
        Kind::EndpointSlice => {
            let pods = [dice.pick(&NAMES), dice.pick(&NAMES)];
            // Sometimes a slice moves to another service.
            let mut metadata = meta(of, &format!("{name}-1"));
            metadata["labels"] = json!({"kubernetes.io/service-name": dice.pick(&NAMES)});
            let endpoints: Vec<Value> = pods
                .iter()
                .map(|pod| json!({"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod", "name": pod}}))
                .collect();
            put(world, kind, json!({"metadata": metadata, "endpoints": endpoints}));
        }
        Kind::VirtualService => {
            let host = format!("{}.{}", dice.pick(&NAMES), dice.pick(&NAMESPACES));
            let export: Vec<&str> = export.into_iter().collect();
            let route = json!([{"route": [{"destination": {"host": host}}]}]);
            rule(world, kind, of, name, json!({"hosts": ["h"], "exportTo": export, "http": route}));
        }
        Kind::DestinationRule => {
            let export: Vec<&str> = export.into_iter().collect();
            rule(world, kind, of, name, json!({"host": "h", "exportTo": export}));
        }
        Kind::Sidecar => {
            let hosts = [json!(["./*"]), json!(["*/*"]), json!(["b/x.b.svc.cluster.local", "~/*"])];
            let mut spec = json!({"egress": [{"hosts": hosts[dice.roll(hosts.len())]}]});
            if dice.roll(3) == 0 {
                spec["workloadSelector"] = json!({"labels": {"app": "x"}});
            }
            rule(world, kind, of, name, spec);
        }
        Kind::ConfigMap => {
            let texts =
                ["", "defaultServiceExportTo: [\".\"]\n", "defaultVirtualServiceExportTo: [b]\n"];
            let mesh = json!({"mesh": dice.pick(&texts)});
            put(world, kind, json!({"metadata": meta("root", "istio"), "data": mesh}));
        }
        Kind::Node => {
            put(world, kind, json!({"metadata": {"name": dice.pick(&NODES)}}));
        }
        _ => {
            rule(world, kind, of, name, json!({"action": dice.pick(&["DENY", "ALLOW"])}));
        }
    }
}

#[test]
fn any_history_ends_the_same() {
    for seed in 1..=100_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let world = world();
        let mut clients: Vec<Client> =
            NODES.iter().map(|node| Client::connect(&world, node)).collect();
        for step in 0..150 {
            change(&world, &mut dice);
            if dice.roll(4) == 0 {
                let client = dice.roll(clients.len());
                clients[client].settle(&world);
            }
            if dice.roll(25) == 0 {
                let client = dice.roll(clients.len());
                let old = &clients[client];
                world.disconnect(&old.ticket);
                clients[client] = Client::resume(&world, old.name, old.held.clone());
            }
            if step % 50 != 49 {
                continue;
            }
            for client in &mut clients {
                client.settle(&world);
            }
            // Somebody new, at a controller that is told everything in another order.
            let other = World::new("root", "cluster.local");
            for kind in Kind::ALL {
                let version = kind.versions().first().expect("a version");
                other.set_api_version(*kind, &api_version(*kind, version));
            }
            for node in NODES {
                let mut objects: Vec<(Kind, Value)> = Vec::new();
                let state = world.state.lock();
                for object in state.objects.iter().filter(|o| o.content.is_some()) {
                    let json = &object.content.as_ref().expect("content").json;
                    objects.push((object.key.kind, serde_json::from_slice(json).expect("JSON")));
                }
                drop(state);
                for _ in 0..objects.len() {
                    let at = dice.roll(objects.len());
                    objects.swap(0, at);
                }
                for (kind, object) in objects {
                    put(&other, kind, object);
                }
                let fresh = Client::connect(&other, node);
                let client = clients.iter().find(|c| c.name == node).expect("a client");
                assert_eq!(fresh.names(), client.names(), "seed {seed} step {step} node {node}");
            }
        }
        // Nothing is left of what is gone.
        let keys: Vec<ObjectKey> = world.state.lock().by_key.keys().cloned().collect();
        for key in &keys {
            world.remove(key);
        }
        for client in &mut clients {
            client.settle(&world);
            assert!(client.names().is_empty(), "seed {seed}: {:?}", client.names());
        }
        let state = world.state.lock();
        assert!(state.by_key.is_empty() && state.units.len() == 0, "seed {seed}");
        assert!(state.pod_units.is_empty() && state.addresses.is_empty());
        assert!(state.pods_by_node.is_empty() && state.clients.is_empty());
    }
}
