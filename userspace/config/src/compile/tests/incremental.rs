//! Incremental equals whole: after any sequence of changes the snapshot is the one that a fresh
//! compiler makes of the objects as they are, and what did not change is shared.

use std::collections::BTreeMap;

use fairlead_policy::balance::{Candidate as _, LoadGuard};

use super::*;
use crate::dump;

/// A small deterministic generator (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % bound as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

fn random_object(random: &mut Random) -> String {
    let name = *random.pick(&["a", "b", "c", "d"]);
    let namespace = *random.pick(&["default", "shop"]);
    let other = *random.pick(&[
        "a",
        "b",
        "c.shop.svc.cluster.local",
        "nobody",
        "a.default.svc.cluster.local",
    ]);
    let version = *random.pick(&["v1", "v2", "v3"]);
    let meta = |kind: &str, group: &str| {
        format!(
            "---\napiVersion: {group}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        )
    };
    match random.below(12) {
        0 => format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio-injection: {}}}}}\n",
            random.pick(&["enabled", "disabled"])
        ),
        1 | 2 => format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{version}, namespace: {namespace}, labels: {{app: {}, version: {version}}}}}\nspec: {{nodeName: {}, containers: [{{name: main, ports: [{{name: web, containerPort: {}}}]}}]}}\nstatus: {{phase: {}, podIP: 10.0.0.{}}}\n",
            random.pick(&["a", "b", "c"]),
            random.pick(&["node-a", "node-b"]),
            random.pick(&[8080, 9090]),
            random.pick(&["Running", "Running", "Running", "Pending", "Succeeded"]),
            random.below(6),
        ),
        3 | 4 => {
            meta("Service", "v1")
                + &format!(
                    "spec:\n  clusterIP: {}\n  selector: {{app: {name}}}\n  ports:\n  - {{name: {}, port: 80, targetPort: web}}\n{}",
                    random.pick(&["10.96.0.1", "10.96.0.2", "10.96.0.3", "None"]),
                    random.pick(&["http", "tcp", "tls", "x"]),
                    random.pick(&["", "  - {name: more, port: 81, targetPort: 8080}\n"]),
                )
        }
        5 => format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-s, namespace: {namespace}, labels: {{kubernetes.io/service-name: {}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.{}]}}, {{addresses: [10.0.1.{}], conditions: {{ready: {}}}}}]\n",
            random.pick(&["a", "b"]),
            random.below(6),
            random.below(3),
            random.pick(&["true", "false"]),
        ),
        6 => {
            meta("DestinationRule", "networking.istio.io/v1")
                + &format!(
                    "spec:\n  host: \"{}\"\n  exportTo: {}\n  trafficPolicy: {{loadBalancer: {{simple: {}}}}}\n  subsets: [{{name: v1, labels: {{version: v1}}}}{}]\n",
                    random.pick(&[other, "*", "*.default.svc.cluster.local"]),
                    random.pick(&["[]", "['.']", "['*']", "[shop]"]),
                    random.pick(&["RANDOM", "ROUND_ROBIN"]),
                    random.pick(&["", ", {name: v2, labels: {version: v2}}"]),
                )
        }
        7 => format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    trustDomain: {}\n    enableAutoMtls: {}\n    rootNamespace: {}\n    defaultVirtualServiceExportTo: {}\n    defaultDestinationRuleExportTo: {}\n",
            random.pick(&["one", "two"]),
            random.pick(&["true", "false"]),
            random.pick(&["istio-system", "shop"]),
            random.pick(&["[]", "['.']", "[shop]"]),
            random.pick(&["[]", "['.']", "[shop]"]),
        ),
        8 => {
            meta("PeerAuthentication", "security.istio.io/v1")
                + &format!(
                    "spec:\n  selector: {{matchLabels: {{app: a}}}}\n  mtls: {{mode: {}}}\n{}",
                    random.pick(&["STRICT", "PERMISSIVE", "DISABLE"]),
                    random.pick(&["", "  portLevelMtls: {8080: {mode: DISABLE}}\n"]),
                )
        }
        9 => {
            meta("AuthorizationPolicy", "security.istio.io/v1")
                + &format!(
                    "spec:\n  action: {}\n  selector: {{matchLabels: {{app: {}}}}}\n  rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]\n",
                    random.pick(&["ALLOW", "DENY"]),
                    random.pick(&["a", "b"]),
                )
        }
        _ => {
            meta("VirtualService", "networking.istio.io/v1")
                + &format!(
                    "  creationTimestamp: '2026-01-0{}T00:00:00Z'\nspec:\n  hosts: [\"{}\"]\n  exportTo: {}\n  gateways: {}\n  http:\n  - match: [{{headers: {{x: {{exact: \"{version}\"}}}}}}]\n    route: [{{destination: {{host: {other}, subset: {version}}}}}]\n  - route: [{{destination: {{host: a, port: {{number: {}}}}}, weight: {}}}, {{destination: {{host: b}}, weight: 1}}]\n  tcp: [{{match: [{{port: 80}}], route: [{{destination: {{host: {other}}}}}]}}]\n",
                    1 + random.below(3),
                    random.pick(&[
                        other,
                        "*.shop.svc.cluster.local",
                        "site.example.com",
                        "*.example.com"
                    ]),
                    random.pick(&["[]", "['.']", "[shop]"]),
                    random.pick(&["[]", "[mesh]", "[edge]"]),
                    random.pick(&[80, 81]),
                    random.below(3),
                )
        }
    }
}

fn dumped(snapshot: &Snapshot) -> serde_json::Value {
    let mut value = dump(snapshot);
    value["version"] = 0.into();
    value
}

#[test]
fn any_sequence_of_changes_ends_where_a_fresh_start_does() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut fixture = Fixture::new("");
        let mut now: BTreeMap<ObjectKey, Resource> = BTreeMap::new();
        for step in 0..60 {
            let mut change: Objects = Vec::new();
            for _ in 0..=random.below(3) {
                let removed = (random.below(4) == 0)
                    .then(|| now.keys().nth(random.below(now.len().max(1))))
                    .flatten();
                match removed.cloned() {
                    Some(key) => {
                        now.remove(&key);
                        change.push((key, None));
                    }
                    None => {
                        for (key, object) in objects(&random_object(&mut random)) {
                            now.insert(key.clone(), object.clone().unwrap());
                            change.push((key, object));
                        }
                    }
                }
            }
            fixture.change(&change);
            let mut fresh = Fixture::new("");
            let all: Objects = now.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
            fresh.change(&all);
            let (left, right) = (dumped(fixture.snapshot()), dumped(fresh.snapshot()));
            let difference = first_difference(&left, &right, "");
            assert_eq!(difference, None, "seed {seed}, step {step}, keys {:?}", keys(&change));
            assert_eq!(fixture.messages(), fresh.messages(), "seed {seed}, step {step}");
            check_whole(fixture.snapshot(), seed, step);
        }
    }
}

fn keys(change: &Objects) -> Vec<String> {
    change.iter().map(|(key, object)| format!("{key} {}", object.is_some())).collect()
}

fn first_difference(
    left: &serde_json::Value,
    right: &serde_json::Value,
    path: &str,
) -> Option<String> {
    let (Some(a), Some(b)) = (left.as_object(), right.as_object()) else {
        return (left != right).then(|| format!("{path}: {left} instead of {right}"));
    };
    if let Some(key) =
        a.keys().chain(b.keys()).find(|k| !(a.contains_key(*k) && b.contains_key(*k)))
    {
        return Some(format!("{path}: {key} is in one only ({:?}, {:?})", a.get(key), b.get(key)));
    }
    a.iter().find_map(|(key, value)| first_difference(value, &b[key], &format!("{path}.{key}")))
}

/// Everything that the snapshot refers to is in it.
fn check_whole(snapshot: &Snapshot, seed: u64, step: usize) {
    for ports in snapshot.services.values() {
        for port in ports.iter() {
            for routes in std::iter::once(&port.common).chain(port.namespaced.iter().map(|n| &n.1))
            {
                assert!(
                    snapshot.cluster(routes.default_cluster).is_some(),
                    "{}:{} leads nowhere, seed {seed}, step {step}",
                    port.service.host,
                    port.number
                );
            }
        }
    }
    for cluster in snapshot.clusters.values() {
        for endpoint in cluster.endpoints.iter() {
            if let Some(workload) = &endpoint.workload {
                let known = snapshot.workloads.get(&endpoint.addr().ip());
                assert!(
                    known.is_some(),
                    "{} has {}, unknown, seed {seed}, step {step}",
                    cluster.name,
                    workload.id
                );
            }
        }
    }
}

#[test]
fn what_did_not_change_is_shared() {
    let mut fixture = Fixture::new(&bookinfo());
    let before = Arc::clone(fixture.snapshot());
    // The same again is no change.
    fixture.apply(&bookinfo());
    assert!(Arc::ptr_eq(&before, fixture.snapshot()));

    let new = pod("ratings-x", "10.0.9.1", "node-b", &[("app", "ratings")]);
    fixture.apply(&new);
    let after = Arc::clone(fixture.snapshot());
    assert_eq!(after.version, before.version + 1);
    let port = |snapshot: &Snapshot, name: &str| {
        Arc::clone(snapshot.service_port("default", name, 9080).unwrap())
    };
    for name in ["reviews", "ratings"] {
        assert!(Arc::ptr_eq(&port(&before, name), &port(&after, name)), "{name}");
    }
    let cluster = |snapshot: &Snapshot, name: &str| {
        Arc::clone(snapshot.cluster(port(snapshot, name).common.default_cluster).unwrap())
    };
    assert!(Arc::ptr_eq(&cluster(&before, "reviews"), &cluster(&after, "reviews")));
    let (old, new) = (cluster(&before, "ratings"), cluster(&after, "ratings"));
    assert_eq!((old.id, old.endpoints.len(), new.endpoints.len()), (new.id, 1, 2));
    assert!(Arc::ptr_eq(&old.state, &new.state), "the balancer goes on where it was");
    assert!(Arc::ptr_eq(&old.endpoints[0], &new.endpoints[0]));
}

#[test]
fn the_load_of_an_endpoint_outlives_a_change_of_its_workload() {
    let mut fixture = Fixture::new(&bookinfo());
    let endpoint = |fixture: &Fixture| {
        let port = fixture.port("default", "ratings", 9080);
        Arc::clone(&fixture.snapshot().cluster(port.common.default_cluster).unwrap().endpoints[0])
    };
    let _on_its_way = LoadGuard::enter(endpoint(&fixture));
    fixture.apply(&pod(
        "ratings-v1",
        "10.0.0.3",
        "node-b",
        &[("app", "ratings"), ("new", "label")],
    ));
    let now = endpoint(&fixture);
    assert_eq!(now.workload.as_ref().unwrap().labels.get("new"), Some("label"));
    assert_eq!(now.load().active(), 1);
}
