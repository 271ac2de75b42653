//! All objects and all connected nodes, with the indices from one to the other. A change is looked
//! up in them; nobody asks all nodes about all objects.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::Key;
use foldhash::fast::RandomState;

use super::claims::Claims;
use super::facts::{Facts, PodFacts};
use super::node::NodeState;
use super::node_set::{NodeId, NodeSet};
use super::object::{Content, Object, Slot};
use super::pod_ranges::PodRanges;
use super::reach::Reach;
use super::replicas::Replicas;
use super::telling::Telling;
use super::unit::{UnitId, Units};

pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;
pub(crate) type Set<T> = HashSet<T, RandomState>;

/// Namespace and name of a pod, whether or not it exists.
pub(crate) type PodName = (Arc<str>, Arc<str>);

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) root_namespace: Arc<str>,
    pub(crate) cluster_domain: Arc<str>,
    pub(crate) objects: Vec<Object>,
    free: Vec<Slot>,
    pub(crate) by_key: Map<ObjectKey, Slot>,
    pub(crate) by_kind: Map<Kind, Set<Slot>>,
    api_versions: Map<Kind, Arc<str>>,
    names: Set<Arc<str>>,
    names_purged_at: usize,
    pub(crate) units: Units,
    /// The services that have a pod behind them, by slices that name it.
    pub(crate) pod_units: Map<PodName, Vec<(UnitId, Slot)>>,
    pub(crate) pods_by_node: Map<Arc<str>, Set<Slot>>,
    pub(crate) addresses: Map<IpAddr, Vec<Slot>>,
    pub(super) pod_ranges: PodRanges,
    /// Addresses of pods that their nodes have told of before the API server.
    pub(crate) claims: Claims,
    /// The namespaces that enrol their pods.
    pub(crate) enrolling: Set<Arc<str>>,
    pub(super) sidecars: Map<Arc<str>, Set<Slot>>,
    /// Of namespaces that have a Sidecar of their own.
    pub(super) reaches: Map<Arc<str>, Reach>,
    /// Of all others.
    pub(super) default_reach: Reach,
    pub(super) default_exports: Exports,
    pub(crate) nodes: Vec<Option<NodeState>>,
    /// The streams of each node, the oldest first.
    pub(crate) nodes_by_name: Map<Arc<str>, Vec<NodeId>>,
    pub(crate) connected: NodeSet,
    /// The nodes that have enrolled pods.
    pub(crate) enrolled: NodeSet,
    /// The nodes that have enrolled pods of a namespace.
    pub(crate) clients: Map<Arc<str>, NodeSet>,
    /// Objects whose verdict changed.
    pub(crate) verdicts: Set<ObjectKey>,
    /// What the leading replica is to be told of.
    pub(super) telling: Telling,
    /// What other replicas told, where this one leads.
    pub(super) replicas: Replicas,
    sequence: u64,
    epoch: u64,
}

/// MeshConfig's `default…ExportTo`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exports {
    pub(super) service: Vec<String>,
    pub(super) virtual_service: Vec<String>,
    pub(super) destination_rule: Vec<String>,
}

/// What became of an object that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    Added,
    Changed,
    /// Nothing that a node reads.
    Same,
}

/// Names that may be kept before those without use are let go.
const NAMES_KEPT: usize = 4096;

impl State {
    pub(crate) fn new(root_namespace: &str, cluster_domain: &str) -> Self {
        Self {
            root_namespace: root_namespace.into(),
            cluster_domain: cluster_domain.into(),
            names_purged_at: NAMES_KEPT,
            ..Self::default()
        }
    }

    /// One copy of each name.
    pub(crate) fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        if self.names.len() >= self.names_purged_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.names_purged_at = NAMES_KEPT.max(self.names.len() * 2);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    pub(crate) fn object(&self, slot: Slot) -> &Object {
        &self.objects[slot as usize]
    }

    pub(crate) fn object_mut(&mut self, slot: Slot) -> &mut Object {
        &mut self.objects[slot as usize]
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<&NodeState> {
        self.nodes.get(node)?.as_ref()
    }

    pub(crate) fn node_mut(&mut self, node: NodeId) -> Option<&mut NodeState> {
        self.nodes.get_mut(node)?.as_mut()
    }

    pub(crate) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// The object as it is named on the wire.
    pub(crate) fn wire_key(&self, key: &ObjectKey) -> Key {
        Key {
            api_version: self
                .api_versions
                .get(&key.kind)
                .map_or_else(String::new, |version| (**version).to_owned()),
            kind: key.kind.as_str().to_owned(),
            namespace: (*key.namespace).to_owned(),
            name: (*key.name).to_owned(),
        }
    }

    pub(crate) fn set_api_version(&mut self, kind: Kind, api_version: &str) {
        self.api_versions.insert(kind, api_version.into());
    }

    fn slot_of(&mut self, key: &ObjectKey) -> Slot {
        if let Some(slot) = self.by_key.get(key) {
            return *slot;
        }
        let object = Object::new(key.clone());
        let slot = match self.free.pop() {
            Some(slot) => {
                self.objects[slot as usize] = object;
                slot
            }
            None => {
                self.objects.push(object);
                u32::try_from(self.objects.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_key.insert(key.clone(), slot);
        slot
    }

    /// Takes an object in.
    pub(crate) fn apply(&mut self, key: &ObjectKey, content: Content, facts: Facts) -> Applied {
        let slot = self.slot_of(key);
        let applied = self.put(slot, key, content, facts);
        self.settle_claims();
        applied
    }

    /// Takes an object in, with the addresses that its node claims for it where it has none.
    pub(super) fn put(
        &mut self,
        slot: Slot,
        key: &ObjectKey,
        content: Content,
        facts: Facts,
    ) -> Applied {
        let (mut content, facts) = self.with_claim(slot, content, facts);
        let old = self.object(slot).content.as_ref();
        if old.is_some_and(|old| *old.version == *content.version) {
            return Applied::Same;
        }
        let applied = if old.is_some() { Applied::Changed } else { Applied::Added };
        self.sequence += 1;
        content.sequence = self.sequence;
        let object = self.object_mut(slot);
        object.content = Some(content);
        object.taken.clear();
        object.refusals.clear();
        self.by_kind.entry(key.kind).or_default().insert(slot);
        self.mark_all(slot);
        self.list_verdict(slot);
        self.set_facts(slot, facts, applied == Applied::Added);
        applied
    }

    /// Takes an object out; whether it was there.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> bool {
        let Some(slot) = self.by_key.get(key).copied() else { return false };
        let Some(content) = &self.object(slot).content else { return false };
        if key.kind == Kind::Pod {
            let uid = content.uid().to_owned();
            self.forget_claim(slot, &uid);
        }
        if let Some(of_kind) = self.by_kind.get_mut(&key.kind) {
            of_kind.remove(&slot);
        }
        let object = self.object_mut(slot);
        object.content = None;
        object.taken.clear();
        object.refusals.clear();
        self.list_verdict(slot);
        self.set_facts(slot, Facts::None, false);
        self.set_wanted(slot, NodeSet::default());
        self.settle(slot);
        self.settle_claims();
        true
    }

    /// Forgets an object that is gone and that no node holds.
    pub(crate) fn settle(&mut self, slot: Slot) {
        let object = self.object(slot);
        // A slot that is free already has lost its name.
        if object.is_over() && self.by_key.get(&object.key) == Some(&slot) {
            let key = object.key.clone();
            self.by_key.remove(&key);
            *self.object_mut(slot) = Object::new(ObjectKey::new(key.kind, "", ""));
            self.free.push(slot);
        }
    }

    /// Has every node that needs the object get it.
    fn mark_all(&mut self, slot: Slot) {
        let wanted = self.object(slot).wanted.clone();
        for node in wanted.iter() {
            self.mark(slot, node);
        }
    }

    /// Puts an object on the list of what a node has to be told.
    pub(crate) fn mark(&mut self, slot: Slot, node: NodeId) {
        if self.objects[slot as usize].dirty.insert(node)
            && let Some(node) = self.nodes.get_mut(node).and_then(Option::as_mut)
        {
            node.mark(slot);
        }
    }

    /// Remembers that the verdict about an object is another one.
    pub(crate) fn list_verdict(&mut self, slot: Slot) {
        let key = &self.objects[slot as usize].key;
        if key.kind.is_istio() {
            self.telling.list(key);
            if !self.verdicts.contains(key) {
                self.verdicts.insert(key.clone());
            }
        }
    }

    /// Sets which nodes need an object, and tells those for which that is new.
    pub(crate) fn set_wanted(&mut self, slot: Slot, wanted: NodeSet) {
        let object = self.object_mut(slot);
        let (added, removed) = (wanted.without(&object.wanted), object.wanted.without(&wanted));
        if added.is_empty() && removed.is_empty() {
            return;
        }
        object.wanted = wanted;
        for node in added.iter() {
            self.mark(slot, node);
        }
        for node in removed.iter() {
            self.unwant(slot, node);
        }
        self.list_verdict(slot);
        self.wanted_changed(slot);
    }

    /// The same for one node.
    pub(crate) fn set_wanted_by(&mut self, slot: Slot, node: NodeId, wanted: bool) {
        let object = self.object_mut(slot);
        if wanted {
            if !object.wanted.insert(node) {
                return;
            }
            self.mark(slot, node);
        } else {
            if !object.wanted.remove(node) {
                return;
            }
            self.unwant(slot, node);
        }
        self.list_verdict(slot);
    }

    fn unwant(&mut self, slot: Slot, node: NodeId) {
        let object = self.object_mut(slot);
        object.taken.remove(node);
        object.refusals.remove(&node);
        // What is on the node's list stays there, or it might come to be there twice.
        if object.held.contains(node) {
            self.mark(slot, node);
        }
    }

    /// What else depends on who needs this object.
    fn wanted_changed(&mut self, slot: Slot) {
        let object = self.object(slot);
        if object.key.kind != Kind::VirtualService {
            return;
        }
        for unit in self.destination_units(slot) {
            self.refresh_unit(unit);
        }
    }

    /// Takes in what an object says about who needs what.
    fn set_facts(&mut self, slot: Slot, facts: Facts, new: bool) {
        let old = std::mem::replace(&mut self.object_mut(slot).facts, facts.clone());
        let gone = self.object(slot).content.is_none();
        if old == facts && !new && !gone && self.object(slot).key.kind != Kind::ConfigMap {
            return;
        }
        let key = self.object(slot).key.clone();
        match key.kind {
            Kind::Namespace => {
                let enrols = matches!(facts, Facts::Namespace { enrols: true });
                self.set_enrolling(&key.name, enrols);
                self.refresh(slot);
            }
            Kind::Node => {
                let ranges = |facts: &Facts| match facts {
                    Facts::Node { ranges } => ranges.clone(),
                    _ => Vec::new(),
                };
                self.pod_ranges.replace(&ranges(&old), &ranges(&facts));
                self.refresh(slot);
            }
            Kind::Pod => {
                let pod = |facts: Facts| match facts {
                    Facts::Pod(pod) => Some(pod),
                    _ => None,
                };
                self.set_pod(slot, pod(old), pod(facts));
            }
            Kind::Service => {
                let addresses = |facts: &Facts| match facts {
                    Facts::Service { addresses, .. } => addresses.clone(),
                    _ => Vec::new(),
                };
                self.file_addresses(slot, &addresses(&old), &addresses(&facts));
                let namespace = self.name(&key.namespace);
                let unit = self.units.named(&namespace, &key.name);
                self.units.get_mut(unit).service = (!gone).then_some(slot);
                if !gone {
                    let wanted = self.units.get(unit).wanted.clone();
                    self.set_wanted(slot, wanted);
                }
                self.refresh_unit(unit);
                self.units.settle(unit);
            }
            Kind::EndpointSlice => self.set_slice(slot, &key, &old, &facts, gone),
            Kind::VirtualService => {
                let destinations = |facts: &Facts| match facts {
                    Facts::Rule { destinations, .. } => destinations.clone(),
                    _ => Vec::new(),
                };
                let (old, new) = (destinations(&old), destinations(&facts));
                self.set_destinations(slot, &old, &new);
                self.refresh(slot);
            }
            Kind::Sidecar => {
                let namespace = self.name(&key.namespace);
                let of_namespace = self.sidecars.entry(Arc::clone(&namespace)).or_default();
                if gone {
                    of_namespace.remove(&slot);
                } else {
                    of_namespace.insert(slot);
                }
                self.refresh_reach(&namespace);
                self.refresh(slot);
            }
            Kind::ConfigMap => {
                self.set_mesh_config(slot);
                self.refresh(slot);
            }
            _ => self.refresh(slot),
        }
    }

    fn set_enrolling(&mut self, namespace: &str, enrols: bool) {
        let namespace = self.name(namespace);
        let changed = if enrols {
            self.enrolling.insert(Arc::clone(&namespace))
        } else {
            self.enrolling.remove(&namespace)
        };
        if changed {
            let with_pods: Vec<NodeId> = self
                .connected
                .iter()
                .filter(|node| {
                    let name = self.node(*node).map(|node| Arc::clone(&node.name));
                    let pods = name.and_then(|name| self.pods_by_node.get(&name));
                    pods.into_iter()
                        .flatten()
                        .any(|pod| *self.object(*pod).key.namespace == *namespace)
                })
                .collect();
            for node in with_pods {
                self.recount(node);
            }
        }
    }

    fn set_pod(&mut self, slot: Slot, old: Option<PodFacts>, new: Option<PodFacts>) {
        let addresses =
            |pod: &Option<PodFacts>| pod.as_ref().map(|p| p.addresses.clone()).unwrap_or_default();
        self.file_addresses(slot, &addresses(&old), &addresses(&new));
        let node = |pod: Option<PodFacts>| pod.map(|pod| pod.node).filter(|node| !node.is_empty());
        let (old, new) = (node(old), node(new));
        if old != new {
            if let Some(old) = &old
                && let Some(pods) = self.pods_by_node.get_mut(old)
            {
                pods.remove(&slot);
                if pods.is_empty() {
                    self.pods_by_node.remove(old);
                }
            }
            if let Some(new) = &new {
                let new = self.name(new);
                self.pods_by_node.entry(new).or_default().insert(slot);
            }
        }
        self.refresh(slot);
        for name in [&old, &new].into_iter().flatten() {
            for node in self.streams(name).to_vec() {
                self.recount(node);
            }
        }
    }

    fn set_slice(&mut self, slot: Slot, key: &ObjectKey, old: &Facts, new: &Facts, gone: bool) {
        let namespace = self.name(&key.namespace);
        let read = |facts: &Facts| match facts {
            Facts::Slice { service, pods } => Some((Arc::clone(service), pods.clone())),
            _ => None,
        };
        let (old, new) = (read(old), read(new));
        let (old_pods, new_pods): (Set<_>, Set<_>) = (
            old.iter().flat_map(|(_, pods)| pods.iter().cloned()).collect(),
            new.iter().flat_map(|(_, pods)| pods.iter().cloned()).collect(),
        );
        let service = |of: &Option<(Arc<str>, Vec<Arc<str>>)>| of.as_ref().map(|of| of.0.clone());
        let (old_service, new_service) = (service(&old), service(&new));
        let moved = old_service != new_service;
        let mut touched: Vec<Arc<str>> = Vec::new();
        for pod in old_pods.iter().filter(|pod| moved || !new_pods.contains(*pod)) {
            let of_pod = (Arc::clone(&namespace), Arc::clone(pod));
            if let Some(units) = self.pod_units.get_mut(&of_pod) {
                units.retain(|(_, slice)| *slice != slot);
                if units.is_empty() {
                    self.pod_units.remove(&of_pod);
                }
            }
            touched.push(Arc::clone(pod));
        }
        if moved && let Some(unit) = old_service.and_then(|old| self.units.find(&namespace, &old)) {
            self.units.get_mut(unit).slices.retain(|slice| *slice != slot);
            self.units.settle(unit);
        }
        let mut wanted = NodeSet::default();
        if let Some(service) = new_service {
            let fresh = moved && self.units.find(&namespace, &service).is_none();
            let unit = self.units.named(&namespace, &service);
            if moved {
                self.units.get_mut(unit).slices.push(slot);
            }
            for pod in new_pods.iter().filter(|pod| moved || !old_pods.contains(*pod)) {
                let of_pod = (Arc::clone(&namespace), Arc::clone(pod));
                self.pod_units.entry(of_pod).or_default().push((unit, slot));
                touched.push(Arc::clone(pod));
            }
            if fresh {
                self.refresh_unit(unit);
            }
            wanted = self.units.get(unit).wanted.clone();
        }
        if !gone {
            self.set_wanted(slot, wanted);
        }
        for pod in touched {
            self.refresh_pod(&namespace, &pod);
        }
    }

    fn set_destinations(&mut self, slot: Slot, old: &[Arc<str>], new: &[Arc<str>]) {
        let mut touched = Vec::new();
        for (hosts, there) in [(old, false), (new, true)] {
            for host in hosts {
                let Some((name, namespace)) = split_host(host) else { continue };
                let (namespace, name) = (self.name(namespace), self.name(name));
                if !there {
                    let Some(unit) = self.units.find(&namespace, &name) else { continue };
                    self.units.get_mut(unit).named_by.retain(|other| *other != slot);
                    touched.push(unit);
                } else {
                    let unit = self.units.named(&namespace, &name);
                    let named_by = &mut self.units.get_mut(unit).named_by;
                    if !named_by.contains(&slot) {
                        named_by.push(slot);
                    }
                    touched.push(unit);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for unit in touched {
            self.refresh_unit(unit);
            self.units.settle(unit);
        }
    }

    fn destination_units(&self, slot: Slot) -> Vec<UnitId> {
        let Facts::Rule { destinations, .. } = &self.object(slot).facts else { return Vec::new() };
        let find = |host: &Arc<str>| {
            let (name, namespace) = split_host(host)?;
            self.units.find(self.names.get(namespace)?, self.names.get(name)?)
        };
        destinations.iter().filter_map(find).collect()
    }

    fn file_addresses(&mut self, slot: Slot, old: &[IpAddr], new: &[IpAddr]) {
        if old == new {
            return;
        }
        self.claims.addresses_change(old, new, &self.addresses);
        for ip in old {
            if let Some(slots) = self.addresses.get_mut(ip) {
                slots.retain(|other| *other != slot);
                if slots.is_empty() {
                    self.addresses.remove(ip);
                }
            }
        }
        for ip in new {
            self.addresses.entry(*ip).or_default().push(slot);
        }
    }
}

/// Name and namespace of a service's host, `name.namespace` at least.
fn split_host(host: &str) -> Option<(&str, &str)> {
    let mut labels = host.split('.');
    Some((labels.next()?, labels.next()?))
}
