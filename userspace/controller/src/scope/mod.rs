//! Which node needs which object.
//!
//! A node needs its own pods; of namespaces and of the mesh's settings all; and, if it has pods in
//! the mesh, for the namespaces of those: their policies, the services, endpoints and routes that
//! are exported to them (`exportTo`) and that their Sidecar lets them reach (`egress.hosts`), the
//! pods behind these endpoints, and where other nodes are. What else it meets, it asks for
//! ([`World::look_up`]). A node without enrolled pods gets next to nothing.
//!
//! Every object has a small number, and every set of nodes is a bit each. A change of an object is
//! brought to the nodes that have its bit; only what decides about who needs it is looked up
//! again, by index. What a node has to be told is a list of objects, each there once, whose bytes
//! are made when they go out: a node that is slow gets the last state of things, never a queue.

mod answers;
mod claims;
mod defaults;
mod facts;
mod interest;
mod node;
mod node_set;
mod object;
mod picture;
mod pod_ranges;
mod reach;
mod replicas;
mod sharing;
mod state;
mod telling;
mod unit;
pub mod verdicts;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::{Ack, Held, Key};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Notify, watch};

pub(crate) use node::{Batch, LookedUp, Ticket, now_micros};
use object::Content;
pub(crate) use picture::Picture;
pub(crate) use replicas::MAX_REPLICAS;
pub(crate) use sharing::{CLAIMS_STAY, Heard, Sharing};
use state::{Applied, State};
pub(crate) use telling::Teller;
pub use verdicts::{Own, Verdict, Verdicts};

use crate::watch::raw::Raw;
use crate::watch::trim::trim;

/// All objects and who needs them; shared by those who watch, those who serve nodes, and those
/// who write status.
#[derive(Debug)]
pub struct World {
    state: Mutex<State>,
    verdict_wake: Notify,
    telling_wake: Notify,
    synced: watch::Sender<bool>,
}

/// What an event meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new object.
    Added,
    /// Something that nodes read has changed.
    Changed,
    /// Nothing that nodes read has changed.
    Same,
}

/// What there is, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Objects by kind.
    pub objects: BTreeMap<Kind, usize>,
    /// Bytes of all of them, as nodes get them.
    pub bytes: usize,
    /// Services, also those of which there are only endpoints.
    pub services: usize,
    /// Nodes with a stream.
    pub nodes: usize,
}

impl World {
    /// A world without objects.
    #[must_use]
    pub fn new(root_namespace: &str, cluster_domain: &str) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(root_namespace, cluster_domain)),
            verdict_wake: Notify::new(),
            telling_wake: Notify::new(),
            synced: watch::Sender::new(false),
        })
    }

    /// Says under which `apiVersion` objects of a kind come from now on.
    pub fn set_api_version(&self, kind: Kind, api_version: &str) {
        self.state.lock().set_api_version(kind, api_version);
    }

    /// Takes an object in as it came from the API server.
    pub fn apply(&self, kind: Kind, api_version: &str, raw: Raw) -> (ObjectKey, Event) {
        let key = ObjectKey::new(kind, raw.text("namespace"), raw.text("name"));
        let generation = raw.metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
        let uid = raw.text("uid").to_owned();
        // All that takes time is done before the lock.
        let json = trim(kind, api_version, raw);
        let wire = Key {
            api_version: api_version.to_owned(),
            kind: kind.as_str().to_owned(),
            namespace: (*key.namespace).to_owned(),
            name: (*key.name).to_owned(),
        };
        let content = Content::new(&wire, &uid, &json, generation);
        let facts = facts::Facts::of(&key, &content.json);
        let mut state = self.state.lock();
        let key = ObjectKey { namespace: state.name(&key.namespace), ..key };
        let event = match state.apply(&key, content, facts) {
            Applied::Added => Event::Added,
            Applied::Changed => Event::Changed,
            Applied::Same => Event::Same,
        };
        self.tell_verdicts(&state);
        (key, event)
    }

    /// Takes an object out; whether it was there.
    pub fn remove(&self, key: &ObjectKey) -> bool {
        let mut state = self.state.lock();
        let there = state.remove(key);
        self.tell_verdicts(&state);
        there
    }

    /// After a new list of all objects of a kind: takes out those that are not in it. Returns how
    /// many.
    pub fn retain<S: std::hash::BuildHasher>(
        &self,
        kind: Kind,
        seen: &HashSet<ObjectKey, S>,
    ) -> usize {
        let mut state = self.state.lock();
        let slots = state.by_kind.get(&kind).into_iter().flatten();
        let keys = slots.map(|slot| &state.object(*slot).key);
        let gone: Vec<ObjectKey> = keys.filter(|key| !seen.contains(*key)).cloned().collect();
        for key in &gone {
            state.remove(key);
        }
        self.tell_verdicts(&state);
        gone.len()
    }

    /// Says that everything has been listed once: nodes can be served.
    pub fn set_synced(&self) {
        self.synced.send_replace(true);
    }

    /// Whether everything has been listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until everything has been listed once.
    pub async fn synced(&self) {
        // The sender is `self`, so it cannot be gone.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The trimmed object, as nodes get it.
    #[must_use]
    pub fn json(&self, key: &ObjectKey) -> Option<bytes::Bytes> {
        let state = self.state.lock();
        let object = state.object(*state.by_key.get(key)?);
        Some(object.content.as_ref()?.json.clone())
    }

    /// Whether a pod of this service account runs on the node now, or is about to.
    #[must_use]
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.state.lock().runs_on(node, namespace, service_account)
    }

    /// What there is.
    #[must_use]
    pub fn census(&self) -> Census {
        let state = self.state.lock();
        let contents = state.objects.iter().filter_map(|object| object.content.as_ref());
        Census {
            bytes: contents.map(|content| content.resource.len()).sum(),
            objects: state.by_kind.iter().map(|(kind, slots)| (*kind, slots.len())).collect(),
            services: state.units.len(),
            nodes: state.connected.len(),
        }
    }

    /// The names of the nodes that have a stream.
    #[must_use]
    pub fn connected(&self) -> Vec<Arc<str>> {
        self.state.lock().nodes_by_name.keys().cloned().collect()
    }

    pub(crate) fn connect(&self, name: &str, instance: &str, inventory: Vec<Held>) -> Ticket {
        let mut state = self.state.lock();
        let ticket = state.connect(name, instance, inventory);
        self.tell_verdicts(&state);
        ticket
    }

    pub(crate) fn disconnect(&self, ticket: &Ticket) {
        let mut state = self.state.lock();
        state.disconnect(ticket);
        self.tell_verdicts(&state);
    }

    pub(crate) fn take(&self, ticket: &Ticket) -> Option<Batch> {
        self.state.lock().take(ticket)
    }

    pub(crate) fn has_news(&self, ticket: &Ticket) -> bool {
        self.state.lock().has_news(ticket)
    }

    pub(crate) fn acknowledge(&self, ticket: &Ticket, ack: Ack) -> usize {
        let mut state = self.state.lock();
        let refused = state.acknowledge(ticket, ack);
        self.tell_verdicts(&state);
        refused
    }

    pub(crate) fn hear_verdicts(&self, ticket: &Ticket, changed: Vec<Held>) -> usize {
        let mut state = self.state.lock();
        let refused = state.hear_verdicts(ticket, changed);
        self.tell_verdicts(&state);
        refused
    }

    pub(crate) fn look_up(&self, ticket: &Ticket, addresses: &[IpAddr]) -> LookedUp {
        self.state.lock().look_up(ticket, addresses)
    }

    fn tell_verdicts(&self, state: &State) {
        if !state.verdicts.is_empty() {
            self.verdict_wake.notify_one();
        }
        if state.telling.has_news() {
            self.telling_wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
