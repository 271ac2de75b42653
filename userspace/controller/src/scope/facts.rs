//! The few facts of an object by which it is decided who needs it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::{EndpointSlice, Namespace, Node, Pod, PodPhase, Service};
use fairlead_api::{Kind, ObjectKey};
use fairlead_config::enrolment::Enrolment;
use serde_json::Value;

use super::pod_ranges::{self, Range};
use super::reach::{Egress, Export};

/// Annotation of a Service that stands for `exportTo`.
const EXPORT_TO: &str = "networking.istio.io/exportTo";
/// Levels of a spec that are searched for destinations.
const MAX_DEPTH: usize = 16;

/// Facts, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Facts {
    /// The kind says all.
    #[default]
    None,
    /// A namespace: whether it enrols the pods that do not say anything themselves.
    Namespace { enrols: bool },
    /// A node: the ranges of its pods.
    Node { ranges: Vec<Range> },
    /// A pod.
    Pod(PodFacts),
    /// A service.
    Service { export: Export, addresses: Vec<IpAddr> },
    /// Endpoints: the service, and the pods behind it.
    Slice { service: Arc<str>, pods: Vec<Arc<str>> },
    /// Routing: who sees it, and the hosts that it sends traffic to.
    Rule { export: Export, destinations: Vec<Arc<str>> },
    /// Scope of a workload.
    Sidecar { selects: bool, egress: Option<Egress> },
}

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) node: Arc<str>,
    pub(crate) service_account: Arc<str>,
    /// Whether it is in the mesh; `None`: as its namespace says.
    pub(crate) enrolled: Option<bool>,
    /// It has come to its end.
    pub(crate) over: bool,
    /// It has no network of its own.
    pub(crate) host_network: bool,
    /// Its own addresses: none on the host's network, none any more when it has come to its end.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Facts {
    /// Reads them from the trimmed object. An object that cannot be read is of its kind all the
    /// same: nodes are to refuse it, and say so.
    pub(crate) fn of(key: &ObjectKey, json: &[u8]) -> Self {
        match key.kind {
            Kind::Namespace => {
                let labels = read::<Namespace>(json).map(|namespace| namespace.metadata.labels);
                let enrols = Enrolment::of(&Pod::default(), labels.as_ref()).is_enrolled();
                Self::Namespace { enrols }
            }
            Kind::Node => read::<Node>(json)
                .map_or(Self::None, |node| Self::Node { ranges: pod_ranges::of_node(&node) }),
            Kind::Pod => read::<Pod>(json).map_or(Self::None, |pod| Self::Pod(pod_facts(&pod))),
            Kind::Service => {
                read::<Service>(json).map_or(Self::None, |service| service_facts(&service))
            }
            Kind::EndpointSlice => read::<EndpointSlice>(json)
                .and_then(|slice| slice_facts(&slice))
                .unwrap_or(Self::None),
            Kind::VirtualService | Kind::DestinationRule | Kind::ServiceEntry => {
                let Some(object) = read::<Value>(json) else { return Self::None };
                rule_facts(&object, &key.namespace)
            }
            Kind::Sidecar => {
                let Some(object) = read::<Value>(json) else { return Self::None };
                let spec = object.get("spec");
                let selector = spec.and_then(|spec| spec.get("workloadSelector"));
                let labels = selector.and_then(|s| s.get("labels")).and_then(Value::as_object);
                Self::Sidecar {
                    selects: labels.is_some_and(|labels| !labels.is_empty()),
                    egress: spec.and_then(Egress::read),
                }
            }
            _ => Self::None,
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

fn pod_facts(pod: &Pod) -> PodFacts {
    let host_network = pod.spec.host_network;
    let over = matches!(pod.status.phase, PodPhase::Succeeded | PodPhase::Failed);
    let has_own = !host_network && !over;
    PodFacts {
        node: pod.spec.node_name.as_str().into(),
        service_account: pod.service_account().into(),
        enrolled: match Enrolment::of(pod, None) {
            Enrolment::NotAsked => None,
            word => Some(word.is_enrolled()),
        },
        over,
        host_network,
        addresses: pod.ips().filter(|_| has_own).map(|ip| ip.to_canonical()).collect(),
    }
}

fn service_facts(service: &Service) -> Facts {
    let metadata = &service.metadata;
    let written = metadata.annotations.get(EXPORT_TO).map(String::as_str).unwrap_or_default();
    let entries = written.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut addresses: Vec<IpAddr> = service.cluster_ips().map(|ip| ip.to_canonical()).collect();
    addresses.dedup();
    Facts::Service { export: Export::new(entries, &metadata.namespace), addresses }
}

fn slice_facts(slice: &EndpointSlice) -> Option<Facts> {
    let mut pods: Vec<Arc<str>> = slice
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.target_ref)
        .filter(|target| target.kind == "Pod")
        // Kubernetes allows no other namespace; nor is one looked for here.
        .filter(|t| t.namespace.is_empty() || t.namespace == slice.metadata.namespace)
        .map(|target| target.name.into())
        .collect();
    pods.sort_unstable();
    pods.dedup();
    Some(Facts::Slice { service: slice.service_name()?.into(), pods })
}

fn rule_facts(object: &Value, namespace: &str) -> Facts {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let entries = spec.get("exportTo").and_then(Value::as_array);
    let entries = entries.into_iter().flatten().filter_map(Value::as_str);
    let mut found = BTreeSet::new();
    destinations(spec, MAX_DEPTH, &mut found);
    let complete = |host: &str| -> Arc<str> {
        let host = host.to_ascii_lowercase();
        if host.contains('.') { host.into() } else { format!("{host}.{namespace}").into() }
    };
    Facts::Rule {
        export: Export::new(entries, namespace),
        destinations: found.into_iter().map(complete).collect(),
    }
}

/// Hosts that a route sends traffic to, copies included.
fn destinations<'v>(value: &'v Value, depth: usize, found: &mut BTreeSet<&'v str>) {
    if depth == 0 {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let is_destination = key == "destination" || key == "mirror";
                match value.get("host").and_then(Value::as_str) {
                    Some(host) if is_destination => {
                        found.insert(host);
                    }
                    _ => destinations(value, depth - 1, found),
                }
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| destinations(item, depth - 1, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(kind: Kind, object: &Value) -> Facts {
        let json = serde_json::to_vec(object).expect("JSON");
        Facts::of(&ObjectKey::new(kind, "shop", "x"), &json)
    }

    #[test]
    fn of_a_route() {
        let route = facts(
            Kind::VirtualService,
            &json!({"metadata": {"name": "x", "namespace": "shop"}, "spec": {
                "hosts": ["a"], "exportTo": [".", "other"],
                "http": [{"route": [{"destination": {"host": "A"}}, {"destination": {"host": "b.c"}}],
                          "mirror": {"host": "m"}, "mirrors": [{"destination": {"host": "n.o.svc"}}]}]
            }}),
        );
        let Facts::Rule { export, destinations } = route else { panic!("{route:?}") };
        assert!(export.is_visible("shop") && export.is_visible("other") && !export.is_visible("x"));
        let destinations: Vec<&str> = destinations.iter().map(|d| &**d).collect();
        assert_eq!(destinations, ["a.shop", "b.c", "m.shop", "n.o.svc"]);
    }

    #[test]
    fn of_pods() {
        let pod = |labels: Value| {
            let object = json!({"metadata": {"name": "x", "namespace": "shop", "labels": labels},
                "spec": {"nodeName": "a"}, "status": {"podIP": "::ffff:10.0.0.1"}});
            match facts(Kind::Pod, &object) {
                Facts::Pod(facts) => facts,
                other => panic!("{other:?}"),
            }
        };
        let plain = pod(json!({}));
        assert_eq!((plain.enrolled, &*plain.service_account, plain.over), (None, "default", false));
        assert_eq!(plain.addresses, ["10.0.0.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(pod(json!({"fairlead.io/mesh": "enabled"})).enrolled, Some(true));
        assert_eq!(pod(json!({"fairlead.io/mesh": "disabled"})).enrolled, Some(false));
    }

    #[test]
    fn of_what_cannot_be_read() {
        assert_eq!(facts(Kind::Pod, &json!({"spec": {"nodeName": 7}})), Facts::None);
        assert_eq!(
            facts(Kind::EndpointSlice, &json!({"metadata": {"name": "x", "namespace": "shop"}})),
            Facts::None
        );
    }
}
