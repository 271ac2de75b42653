//! A connected node: what it has to be told, and what it says.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::{Held, Key};
use tokio::sync::Notify;

use super::facts::Facts;
use super::node_set::NodeId;
use super::object::{Slot, priority};
use super::state::{Map, Set, State};
use super::unit::UnitId;

/// Bytes of resources in one Update: what else is in there has the rest of
/// [`fairlead_wire::config::MAX_MESSAGE_BYTES`].
const MAX_UPDATE_BYTES: usize = 3 << 20;
/// Keys that one Update takes back.
const MAX_REMOVED: usize = 8192;
/// Streams of one node: a daemon's, and that of the one that takes over from it.
const MAX_STREAMS: usize = 2;
/// Things outside of its scope that a node may have asked for; the oldest goes for a new one.
const MAX_LOOKED_UP: usize = 4096;

/// What is known of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LookedUp {
    /// Anything of any of them.
    pub(crate) known: bool,
    /// Those in the range of a node's pods that nobody is known to have.
    pub(crate) unclaimed: Vec<IpAddr>,
}

/// A node that has a stream.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) name: Arc<str>,
    /// Tells this stream of the node from others.
    pub(crate) epoch: u64,
    /// When it began.
    pub(crate) since: tokio::time::Instant,
    /// The start of the daemon that it is of.
    instance: String,
    /// The namespaces of its enrolled pods.
    pub(crate) clients: Set<Arc<str>>,
    /// What it has to be told; each object once.
    dirty: Vec<Slot>,
    /// What it held when it came and what does not exist.
    gone: Vec<Key>,
    /// When the oldest of it came up.
    oldest: Option<(Instant, u64)>,
    /// What it has been told and has not judged.
    pub(super) in_flight: Vec<(Slot, u64)>,
    /// The Update that it was told last says that it has everything.
    pub(super) complete: bool,
    /// It has had everything once: from then on it judges each Update by itself.
    pub(super) synced: bool,
    looked_up: VecDeque<Looked>,
    /// Something is to be told.
    pub(crate) wake: Arc<Notify>,
    /// Another stream has taken this one's place.
    pub(crate) replaced: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    Unit(UnitId),
    Pod(Slot),
}

impl NodeState {
    /// Puts an object on the list; it must not be there.
    pub(crate) fn mark(&mut self, slot: Slot) {
        if self.oldest.is_none() {
            self.oldest = Some((Instant::now(), now_micros()));
        }
        self.dirty.push(slot);
        self.wake.notify_one();
    }
}

/// Microseconds of the Unix epoch.
pub(crate) fn now_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A node's stream, as it names itself to the state.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) node: NodeId,
    epoch: u64,
    pub(crate) wake: Arc<Notify>,
    pub(crate) replaced: Arc<Notify>,
}

/// What one Update has to say.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// `fairlead.config.v1.Resource` each.
    pub(crate) upserts: Vec<Bytes>,
    pub(crate) removed: Vec<Key>,
    /// How many objects of each kind.
    pub(crate) kinds: BTreeMap<Kind, usize>,
    /// Nothing is left to be told.
    pub(crate) complete: bool,
    /// When the oldest change came up, if there is any.
    pub(crate) oldest: Option<(Instant, u64)>,
}

impl State {
    /// Takes a node in, with what it holds already.
    ///
    /// A daemon has one stream: a new one of the same start takes the place of the one before. A
    /// node has more than one while a daemon takes over from another, both of which serve.
    pub(crate) fn connect(&mut self, name: &str, instance: &str, inventory: Vec<Held>) -> Ticket {
        let name = self.name(name);
        let (before, others): (Vec<_>, Vec<_>) = self
            .streams(&name)
            .iter()
            .partition(|old| self.node(**old).is_some_and(|node| node.instance == instance));
        let too_many = (others.len() + 1).saturating_sub(MAX_STREAMS);
        for old in before.into_iter().chain(others.into_iter().take(too_many)) {
            self.disconnect_node(old);
        }
        let node = self.nodes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        let epoch = self.next_epoch();
        let (wake, replaced) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        self.nodes[node] = Some(NodeState {
            name: Arc::clone(&name),
            epoch,
            since: tokio::time::Instant::now(),
            instance: instance.to_owned(),
            clients: Set::default(),
            dirty: Vec::new(),
            gone: Vec::new(),
            oldest: None,
            in_flight: Vec::new(),
            complete: false,
            synced: false,
            looked_up: VecDeque::new(),
            wake: Arc::clone(&wake),
            replaced: Arc::clone(&replaced),
        });
        self.nodes_by_name.entry(name).or_default().push(node);
        self.connected.insert(node);
        self.streams_changed();
        let mut versions: Map<Slot, Held> = Map::default();
        for held in inventory {
            let Some(key) = held.key.clone() else { continue };
            let slot = Kind::from_name(&key.kind)
                .map(|kind| ObjectKey::new(kind, &key.namespace, &key.name))
                .filter(|own| self.wire_key(own) == key)
                .and_then(|own| self.by_key.get(&own).copied());
            match slot {
                Some(slot) if self.object(slot).content.is_some() => {
                    self.object_mut(slot).held.insert(node);
                    versions.insert(slot, held);
                }
                // Also what is stored under another version of the API now.
                _ => {
                    if let Some(state) = self.node_mut(node) {
                        state.gone.push(key);
                    }
                }
            }
        }
        self.recount(node);
        self.rescope(node);
        for (slot, Held { version, rejected, .. }) in versions {
            let object = self.object_mut(slot);
            if !object.wanted.contains(node) {
                self.mark(slot, node);
            } else if object.content.as_ref().is_some_and(|content| *content.version == *version) {
                object.dirty.remove(node);
                self.judge(slot, node, rejected);
            }
        }
        if let Some(state) = self.nodes[node].as_mut() {
            let objects = &self.objects;
            state.dirty.retain(|slot| objects[*slot as usize].dirty.contains(node));
        }
        wake.notify_one();
        Ticket { node, epoch, wake, replaced }
    }

    /// The streams of a node, the oldest first.
    pub(crate) fn streams(&self, name: &str) -> &[NodeId] {
        self.nodes_by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Forgets a node, if this is still its stream.
    pub(crate) fn disconnect(&mut self, ticket: &Ticket) {
        if self.is_current(ticket) {
            self.disconnect_node(ticket.node);
        }
    }

    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        self.node(ticket.node).is_some_and(|node| node.epoch == ticket.epoch)
    }

    fn disconnect_node(&mut self, node: NodeId) {
        let Some(state) = self.nodes.get_mut(node).and_then(Option::take) else { return };
        state.replaced.notify_one();
        if let Some(streams) = self.nodes_by_name.get_mut(&state.name) {
            streams.retain(|stream| *stream != node);
            if streams.is_empty() {
                self.nodes_by_name.remove(&state.name);
            }
        }
        self.connected.remove(node);
        self.streams_changed();
        self.enrolled.remove(node);
        for namespace in &state.clients {
            if let Some(nodes) = self.clients.get_mut(namespace) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.clients.remove(namespace);
                }
            }
        }
        for unit in self.units.ids() {
            let unit = self.units.get_mut(unit);
            unit.wanted.remove(node);
            unit.looked.remove(node);
        }
        for slot in 0..u32::try_from(self.objects.len()).unwrap_or(u32::MAX) {
            if self.object(slot).wanted.contains(node) {
                self.keep_last_word(&state.name, node, slot);
            }
            let object = self.object_mut(slot);
            if object.wanted.contains(node) || object.refusals.contains_key(&node) {
                object.forget(node);
                self.list_verdict(slot);
            } else {
                object.forget(node);
            }
            self.settle(slot);
        }
    }

    /// What the node has to be told next; `None` if its stream has been replaced.
    pub(crate) fn take(&mut self, ticket: &Ticket) -> Option<Batch> {
        if !self.is_current(ticket) {
            return None;
        }
        let node = ticket.node;
        let state = self.node_mut(node)?;
        let mut dirty = std::mem::take(&mut state.dirty);
        let mut batch = Batch { oldest: state.oldest.take(), ..Batch::default() };
        let of_kind = |slot: &Slot| {
            let object = self.object(*slot);
            // What is taken back comes last, pods first of it: no policy goes before its pods.
            let gone = object.content.is_none() || !object.wanted.contains(node);
            let priority = priority(object.key.kind);
            (gone, if gone { u8::MAX - priority } else { priority })
        };
        dirty.sort_by_key(of_kind);
        let (mut bytes, mut told, mut in_flight) = (0, 0, Vec::new());
        let mut over = Vec::new();
        for slot in &dirty {
            let object = &mut self.objects[*slot as usize];
            let content = object.content.as_ref().filter(|_| object.wanted.contains(node));
            match content {
                Some(content) if object.dirty.contains(node) => {
                    let size = content.resource.len();
                    if bytes + size > MAX_UPDATE_BYTES && bytes > 0 {
                        break;
                    }
                    bytes += size;
                    batch.upserts.push(content.resource.clone());
                    in_flight.push((*slot, content.sequence));
                    object.held.insert(node);
                    *batch.kinds.entry(object.key.kind).or_default() += 1;
                }
                None if object.held.contains(node) => {
                    if batch.removed.len() >= MAX_REMOVED {
                        break;
                    }
                    object.held.remove(node);
                    *batch.kinds.entry(object.key.kind).or_default() += 1;
                    let key = object.key.clone();
                    batch.removed.push(self.wire_key(&key));
                    over.push(*slot);
                }
                _ => over.push(*slot),
            }
            self.objects[*slot as usize].dirty.remove(node);
            told += 1;
        }
        let rest = dirty.split_off(told);
        for slot in over {
            self.settle(slot);
        }
        let state = self.node_mut(node)?;
        if rest.is_empty() {
            let room = MAX_REMOVED.saturating_sub(batch.removed.len()).min(state.gone.len());
            let keep = state.gone.len() - room;
            batch.removed.extend(state.gone.drain(keep..));
        }
        batch.complete = rest.is_empty() && state.gone.is_empty();
        if !rest.is_empty() {
            state.oldest = batch.oldest;
        }
        state.dirty = rest;
        state.complete = batch.complete;
        if state.synced {
            state.in_flight = in_flight;
        } else {
            state.in_flight.extend(in_flight);
        }
        Some(batch)
    }

    /// Whether there is something to tell.
    pub(crate) fn has_news(&self, ticket: &Ticket) -> bool {
        self.is_current(ticket)
            && self.node(ticket.node).is_some_and(|n| !n.dirty.is_empty() || !n.gone.is_empty())
    }

    /// Finds what has an address, and has the node told about it from now on.
    pub(crate) fn look_up(&mut self, ticket: &Ticket, addresses: &[IpAddr]) -> LookedUp {
        let mut all = LookedUp::default();
        if !self.is_current(ticket) {
            return all;
        }
        let node = ticket.node;
        for ip in addresses {
            let found = self.addresses.get(&ip.to_canonical()).cloned().unwrap_or_default();
            if found.is_empty() && self.pod_ranges.is_of_a_pod(ip.to_canonical()) {
                all.unclaimed.push(*ip);
            }
            for slot in found {
                all.known = true;
                let key = self.object(slot).key.clone();
                let looked = match key.kind {
                    Kind::Service => {
                        let namespace = self.name(&key.namespace);
                        Looked::Unit(self.units.named(&namespace, &key.name))
                    }
                    _ => Looked::Pod(slot),
                };
                let new = match looked {
                    Looked::Unit(unit) => self.units.get_mut(unit).looked.insert(node),
                    Looked::Pod(slot) => self.object_mut(slot).looked.insert(node),
                };
                if new {
                    self.decide(looked);
                    self.remember(node, looked);
                }
            }
        }
        all
    }

    fn remember(&mut self, node: NodeId, looked: Looked) {
        let Some(state) = self.node_mut(node) else { return };
        state.looked_up.push_back(looked);
        if state.looked_up.len() <= MAX_LOOKED_UP {
            return;
        }
        let Some(oldest) = state.looked_up.pop_front() else { return };
        match oldest {
            Looked::Unit(unit) => self.units.get_mut(unit).looked.remove(node),
            Looked::Pod(slot) => self.object_mut(slot).looked.remove(node),
        };
        self.decide(oldest);
    }

    fn decide(&mut self, looked: Looked) {
        match looked {
            Looked::Unit(unit) => self.refresh_unit(unit),
            Looked::Pod(slot) => self.refresh(slot),
        }
    }

    /// Whether a pod of this service account runs on the node, or is about to.
    pub(crate) fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.pods_by_node.get(node).into_iter().flatten().any(|slot| {
            let object = self.object(*slot);
            *object.key.namespace == *namespace
                && matches!(&object.facts, Facts::Pod(pod)
                    if !pod.over && *pod.service_account == *service_account)
        })
    }
}
