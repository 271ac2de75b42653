//! Who needs what: the rule, asked for an object (after a change of it) or for a node (after a
//! change of what runs there).

use std::sync::Arc;

use fairlead_api::Kind;

use super::facts::Facts;
use super::node_set::{NodeId, NodeSet};
use super::object::{Object, Slot};
use super::state::{Map, State};
use super::unit::{Unit, UnitId};

/// Who needs an object of a kind.
enum Audience {
    Nobody,
    /// All nodes.
    All,
    /// The node itself, and those that have enrolled pods.
    Node,
    /// Those with enrolled pods in its namespace; in the root namespace, all with enrolled pods.
    Namespace,
    /// Those with enrolled pods that see it and may reach it.
    Rule,
    /// As the service that it is of.
    Unit,
    /// The node that it runs on, and those that may reach a service that it is behind.
    Pod,
}

impl Audience {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Namespace | Kind::ConfigMap => Self::All,
            Kind::Node => Self::Node,
            Kind::Pod => Self::Pod,
            Kind::Service | Kind::EndpointSlice => Self::Unit,
            // A node reads none of them: identities are told by names, keys stay where they are.
            Kind::ServiceAccount | Kind::Secret => Self::Nobody,
            Kind::VirtualService
            | Kind::DestinationRule
            | Kind::ServiceEntry
            | Kind::WorkloadEntry => Self::Rule,
            _ => Self::Namespace,
        }
    }
}

impl State {
    /// Whether pods of `client` need a rule.
    fn sees_rule(&self, client: &str, object: &Object) -> bool {
        let namespace = &object.key.namespace;
        let visible = match &object.facts {
            Facts::Rule { export, .. } => {
                self.is_visible(object.key.kind, export, namespace, client)
            }
            _ => true,
        };
        let reached = *client == **namespace
            || **namespace == *self.root_namespace
            || self.reach(client).namespace(namespace, client);
        visible && reached
    }

    /// Whether pods of `client` need a service.
    fn sees_unit(&self, client: &str, unit: &Unit, host: &str) -> bool {
        // Its own pods need it for what comes in, whoever may see it.
        *client == *unit.namespace
            || (self.exports_unit(client, unit)
                && self.reach(client).host(&unit.namespace, host, client))
    }

    fn exports_unit(&self, client: &str, unit: &Unit) -> bool {
        let service = unit.service.map(|slot| &self.object(slot).facts);
        match service {
            Some(Facts::Service { export, .. }) => {
                self.is_visible(Kind::Service, export, &unit.namespace, client)
            }
            _ => true,
        }
    }

    fn host(&self, unit: &Unit) -> String {
        format!("{}.{}.svc.{}", unit.name, unit.namespace, self.cluster_domain)
    }

    /// Decides again who needs an object.
    pub(crate) fn refresh(&mut self, slot: Slot) {
        let object = self.object(slot);
        if object.content.is_none() {
            return;
        }
        let namespace = &object.key.namespace;
        let wanted = match Audience::of(object.key.kind) {
            Audience::Nobody => NodeSet::default(),
            Audience::All => self.connected.clone(),
            Audience::Node => {
                let mut wanted = self.enrolled.clone();
                for stream in self.streams(&object.key.name) {
                    wanted.insert(*stream);
                }
                wanted
            }
            Audience::Namespace if **namespace == *self.root_namespace => self.enrolled.clone(),
            Audience::Namespace => self.clients.get(namespace).cloned().unwrap_or_default(),
            Audience::Rule => {
                let mut wanted = NodeSet::default();
                for (client, nodes) in &self.clients {
                    if self.sees_rule(client, object) {
                        wanted.union_with(nodes);
                    }
                }
                wanted
            }
            Audience::Unit => return,
            Audience::Pod => {
                let mut wanted = object.looked.clone();
                if let Facts::Pod(pod) = &object.facts {
                    for stream in self.streams(&pod.node) {
                        wanted.insert(*stream);
                    }
                }
                for unit in self.units_of_pod(object) {
                    wanted.union_with(&self.units.get(unit).wanted);
                }
                wanted
            }
        };
        self.set_wanted(slot, wanted);
    }

    fn units_of_pod(&self, pod: &Object) -> impl Iterator<Item = UnitId> + '_ {
        let of_pod = (Arc::clone(&pod.key.namespace), Arc::clone(&pod.key.name));
        self.pod_units.get(&of_pod).into_iter().flatten().map(|(unit, _)| *unit)
    }

    pub(crate) fn refresh_pod(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let key = fairlead_api::ObjectKey {
            kind: Kind::Pod,
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
        };
        if let Some(slot) = self.by_key.get(&key).copied() {
            self.refresh(slot);
        }
    }

    /// Decides again who needs a service and what belongs to it.
    pub(crate) fn refresh_unit(&mut self, id: UnitId) {
        let unit = self.units.get(id);
        let host = self.host(unit);
        let mut wanted = unit.looked.clone();
        for (client, nodes) in &self.clients {
            if self.sees_unit(client, unit, &host) {
                wanted.union_with(nodes);
            }
        }
        for slot in &unit.named_by {
            let rule = self.object(*slot);
            for node in
                rule.wanted.iter().filter(|node| !wanted.contains(*node)).collect::<Vec<_>>()
            {
                if self.is_named_for(node, rule, unit) {
                    wanted.insert(node);
                }
            }
        }
        let unit = self.units.get_mut(id);
        if unit.wanted == wanted {
            return;
        }
        unit.wanted = wanted.clone();
        let parts: Vec<Slot> = unit.service.iter().chain(&unit.slices).copied().collect();
        for slot in parts {
            self.set_wanted(slot, wanted.clone());
        }
        for (namespace, pod) in self.pods_of_unit(id) {
            self.refresh_pod(&namespace, &pod);
        }
    }

    /// Whether a route that a node has leads its pods to a service, and they may see that.
    fn is_named_for(&self, node: NodeId, rule: &Object, unit: &Unit) -> bool {
        let clients = self.node(node).map(|node| &node.clients);
        clients.is_some_and(|clients| {
            clients
                .iter()
                .any(|client| self.exports_unit(client, unit) && self.sees_rule(client, rule))
        })
    }

    pub(crate) fn pods_of_unit(&self, unit: UnitId) -> Vec<(Arc<str>, Arc<str>)> {
        let unit = self.units.get(unit);
        let of_slice = |slot: &Slot| match &self.object(*slot).facts {
            Facts::Slice { pods, .. } => pods.clone(),
            _ => Vec::new(),
        };
        let pods = unit.slices.iter().flat_map(of_slice);
        pods.map(|pod| (Arc::clone(&unit.namespace), pod)).collect()
    }

    /// Decides again about everything, as the mesh has other defaults.
    pub(crate) fn refresh_all(&mut self) {
        let rules =
            [Kind::VirtualService, Kind::DestinationRule, Kind::ServiceEntry, Kind::WorkloadEntry];
        let slots: Vec<Slot> =
            rules.iter().filter_map(|kind| self.by_kind.get(kind)).flatten().copied().collect();
        for slot in slots {
            self.refresh(slot);
        }
        for unit in self.units.ids() {
            self.refresh_unit(unit);
        }
    }

    /// Counts again which namespaces the enrolled pods of a node are of.
    pub(crate) fn recount(&mut self, node: NodeId) {
        let Some(state) = self.node(node) else { return };
        let mut clients: Map<Arc<str>, usize> = Map::default();
        for slot in self.pods_by_node.get(&state.name).into_iter().flatten() {
            let object = self.object(*slot);
            if let Facts::Pod(pod) = &object.facts {
                let namespace = &object.key.namespace;
                let enrolled = pod.enrolled.unwrap_or_else(|| self.enrolling.contains(namespace));
                if enrolled && !pod.over {
                    *clients.entry(Arc::clone(namespace)).or_default() += 1;
                }
            }
        }
        let old = &state.clients;
        let left: Vec<Arc<str>> =
            old.iter().filter(|namespace| !clients.contains_key(*namespace)).cloned().collect();
        let joined: Vec<Arc<str>> =
            clients.keys().filter(|namespace| !old.contains(*namespace)).cloned().collect();
        if left.is_empty() && joined.is_empty() {
            return;
        }
        for namespace in left {
            if let Some(nodes) = self.clients.get_mut(&namespace) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.clients.remove(&namespace);
                }
            }
        }
        for namespace in joined {
            self.clients.entry(namespace).or_default().insert(node);
        }
        if clients.is_empty() {
            self.enrolled.remove(node);
        } else {
            self.enrolled.insert(node);
        }
        if let Some(state) = self.node_mut(node) {
            state.clients = clients.into_keys().collect();
        }
        self.rescope(node);
    }

    /// Decides again what a node needs.
    pub(crate) fn rescope(&mut self, node: NodeId) {
        let Some(state) = self.node(node) else { return };
        let (name, clients) = (Arc::clone(&state.name), state.clients.clone());
        let mut decided: Vec<(Slot, bool)> = Vec::new();
        for (kind, slots) in &self.by_kind {
            let audience = Audience::of(*kind);
            for slot in slots {
                let object = self.object(*slot);
                let namespace = &object.key.namespace;
                let wanted = match audience {
                    Audience::Nobody | Audience::Unit | Audience::Pod => break,
                    Audience::All => true,
                    Audience::Node => !clients.is_empty() || object.key.name == name,
                    Audience::Namespace => {
                        clients.contains(namespace)
                            || (**namespace == *self.root_namespace && !clients.is_empty())
                    }
                    Audience::Rule => clients.iter().any(|client| self.sees_rule(client, object)),
                };
                if wanted != object.wanted.contains(node) {
                    decided.push((*slot, wanted));
                }
            }
        }
        for (slot, wanted) in decided {
            self.set_wanted_by(slot, node, wanted);
        }
        let mut pods: Vec<Slot> =
            self.pods_by_node.get(&name).into_iter().flatten().copied().collect();
        for id in self.units.ids() {
            let unit = self.units.get(id);
            let wanted =
                unit.looked.contains(node)
                    || (!clients.is_empty() && {
                        let host = self.host(unit);
                        clients.iter().any(|client| self.sees_unit(client, unit, &host))
                    })
                    || unit.named_by.iter().map(|slot| self.object(*slot)).any(|rule| {
                        rule.wanted.contains(node) && self.is_named_for(node, rule, unit)
                    });
            if wanted == unit.wanted.contains(node) {
                continue;
            }
            let unit = self.units.get_mut(id);
            if wanted {
                unit.wanted.insert(node);
            } else {
                unit.wanted.remove(node);
            }
            let parts: Vec<Slot> = unit.service.iter().chain(&unit.slices).copied().collect();
            for slot in parts {
                self.set_wanted_by(slot, node, wanted);
            }
            for (namespace, name) in self.pods_of_unit(id) {
                let key = fairlead_api::ObjectKey { kind: Kind::Pod, namespace, name };
                pods.extend(self.by_key.get(&key));
            }
        }
        for slot in pods {
            let object = self.object(slot);
            let own = matches!(&object.facts, Facts::Pod(pod) if pod.node == name);
            let wanted = own
                || object.looked.contains(node)
                || self.units_of_pod(object).any(|u| self.units.get(u).wanted.contains(node));
            if object.content.is_some() {
                self.set_wanted_by(slot, node, wanted);
            }
        }
    }
}
