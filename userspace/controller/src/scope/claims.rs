//! Addresses of pods, as their nodes say them before the API server knows them.
//!
//! The network plugins give a pod its addresses before its first process starts; its object names
//! them when kubelet has reported, up to seconds later. Meanwhile who meets such an address would
//! be told that nobody has it. So a node says what its pods were given, and a pod's object that
//! names no address is handed out as if it named these.
//!
//! A node is believed no more than its kubelet is: for objects with that UID that run on it by
//! their spec, on a network of their own. Less, even: what an object names is never overridden,
//! and an address that another object or claim has is not to be had.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::cni::MAX_IPS;
use fairlead_wire::config::{AddressedPod, Resource};
use prost::Message;
use serde_json::{Value, json};

use super::World;
use super::facts::Facts;
use super::node::Ticket;
use super::object::{Content, Slot};
use super::sharing::{By, Origin, Outbox};
use super::state::{Map, Set, State};

/// Claims of one node: more pods than any kubelet takes at a time.
pub(super) const MAX_CLAIMS: usize = 1024;
/// Bytes of the longest UID that is remembered.
const MAX_UID: usize = 128;
/// How long a claim waits for the pod's object.
const OBJECT_PATIENCE: Duration = Duration::from_secs(60);

/// What nodes have said.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// By node and UID of the pod.
    by_node: Map<Arc<str>, Map<Box<str>, Claim>>,
    /// Objects that are handed out with claimed addresses: what they are without.
    plain: Map<Slot, (Content, Facts)>,
    /// Objects whose claim has no room beside others.
    blocked: Set<Slot>,
    /// Objects about which has to be decided again.
    pub(super) again: Vec<Slot>,
    /// How many of them other replicas told.
    pub(super) told: usize,
    /// What other replicas are to be told.
    pub(super) outboxes: Vec<Outbox>,
}

#[derive(Debug)]
pub(super) struct Claim {
    /// The pod, as it is called by whoever claims.
    pub(super) key: ObjectKey,
    pub(super) addresses: Vec<IpAddr>,
    since: Instant,
    /// Whether the pod's object has been there.
    met: bool,
    pub(super) by: By,
    /// When the stream of the node began by which this was said; `None`: longer ago than others.
    pub(super) stream: Option<tokio::time::Instant>,
}

impl Claim {
    pub(super) fn new(
        key: ObjectKey,
        addresses: Vec<IpAddr>,
        by: By,
        stream: Option<tokio::time::Instant>,
    ) -> Self {
        Self { key, addresses, since: Instant::now(), met: false, by, stream }
    }

    /// Whether no object has come to it for long.
    pub(super) fn is_over(&self) -> bool {
        !self.met && self.since.elapsed() >= OBJECT_PATIENCE
    }
}

impl Claims {
    /// The addresses of an object are about to change: who named what comes before who claims it,
    /// and what becomes free may be claimed.
    pub(super) fn addresses_change(
        &mut self,
        old: &[IpAddr],
        new: &[IpAddr],
        addresses: &Map<IpAddr, Vec<Slot>>,
    ) {
        if !self.plain.is_empty() {
            let holders = new.iter().filter_map(|ip| addresses.get(ip)).flatten();
            self.again.extend(holders.filter(|slot| self.plain.contains_key(slot)));
        }
        if !old.is_empty() {
            self.again.extend(&self.blocked);
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_node.values().map(Map::len).sum()
    }

    /// Whether there are none, nor anything of one.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && self.plain.is_empty() && self.blocked.is_empty()
    }

    fn of(&self, node: &str, uid: &str) -> Option<&Claim> {
        self.by_node.get(node)?.get(uid).filter(|claim| !claim.is_over())
    }

    /// All claims of a node.
    pub(super) fn of_node(&self, node: &str) -> impl Iterator<Item = (&str, &Claim)> {
        let of_node = self.by_node.get(node).into_iter().flatten();
        of_node.map(|(uid, claim)| (&**uid, claim))
    }

    /// The nodes with claims.
    pub(super) fn nodes(&self) -> Vec<Arc<str>> {
        self.by_node.keys().cloned().collect()
    }

    /// Whether this object is handed out with what is claimed.
    pub(super) fn counts(&self, slot: Slot) -> bool {
        self.plain.contains_key(&slot)
    }

    /// Takes a claim in, if there is room; whether there was.
    pub(super) fn insert(&mut self, node: &Arc<str>, uid: &str, claim: Claim) -> bool {
        let of_node = self.by_node.entry(Arc::clone(node)).or_default();
        let before = of_node.get(uid);
        if before.is_none() && of_node.len() >= MAX_CLAIMS {
            return false;
        }
        let news = before.is_none_or(|before| {
            before.addresses != claim.addresses || before.by.origin() != claim.by.origin()
        });
        let (origin, stream) = (claim.by.origin(), claim.stream);
        self.told += usize::from(origin.is_some());
        let before = of_node.insert(uid.into(), claim);
        if let Some(before) = before {
            let replaced = before.by.origin();
            self.told -= usize::from(replaced.is_some());
            if replaced != origin {
                self.note(&replaced, node, false, None);
            }
        }
        if news {
            self.note(&origin, node, false, stream);
        }
        true
    }

    /// Somebody says again what is known.
    pub(super) fn keep(
        &mut self,
        node: &Arc<str>,
        uid: &str,
        by: By,
        stream: Option<tokio::time::Instant>,
    ) {
        let of_node = self.by_node.get_mut(node);
        let Some(claim) = of_node.and_then(|of_node| of_node.get_mut(uid)) else { return };
        claim.stream = stream;
        let (before, now) = (claim.by.origin(), by.origin());
        claim.by = by;
        self.told += usize::from(now.is_some());
        self.told -= usize::from(before.is_some());
        if before != now {
            self.note(&before, node, false, None);
            self.note(&now, node, false, stream);
        }
    }

    fn drop_one(&mut self, node: &str, uid: &str) {
        let Some((node, _)) = self.by_node.get_key_value(node) else { return };
        let node = Arc::clone(node);
        let Some(of_node) = self.by_node.get_mut(&node) else { return };
        let Some(claim) = of_node.remove(uid) else { return };
        if of_node.is_empty() {
            self.by_node.remove(&node);
        }
        let origin = claim.by.origin();
        self.told -= usize::from(origin.is_some());
        self.note(&origin, &node, false, None);
    }

    /// Lets claims of a node go; whether there were any.
    fn let_go(&mut self, node: &Arc<str>, goes: impl Fn(&str, &Claim) -> bool) -> bool {
        let Some(of_node) = self.by_node.get_mut(node) else { return false };
        let mut origins: Vec<Origin> = Vec::new();
        let told = &mut self.told;
        of_node.retain(|uid, claim| {
            let goes = goes(uid, claim);
            if goes {
                let origin = claim.by.origin();
                *told -= usize::from(origin.is_some());
                if !origins.contains(&origin) {
                    origins.push(origin);
                }
            }
            !goes
        });
        if of_node.is_empty() {
            self.by_node.remove(node);
        }
        for origin in &origins {
            self.note(origin, node, false, None);
        }
        !origins.is_empty()
    }
}

impl World {
    /// Takes in which addresses a node claims for its pods; `all`: it claims no others.
    pub(crate) fn claim(&self, ticket: &Ticket, pods: Vec<AddressedPod>, all: bool) {
        self.state.lock().claim(ticket, pods, all);
    }

    /// Forgets which addresses a node claims for its pods, unless it has a stream.
    pub(crate) fn forget_claims(&self, node: &str) {
        self.state.lock().forget_claims(node);
    }
}

impl State {
    /// Takes in what a node says of its pods.
    pub(crate) fn claim(&mut self, ticket: &Ticket, pods: Vec<AddressedPod>, all: bool) {
        if !self.is_current(ticket) {
            return;
        }
        let Some(stream) = self.node(ticket.node) else { return };
        let (node, stream) = (Arc::clone(&stream.name), Some(stream.since));
        if all {
            self.drop_claims(&node, |_, _| true);
            self.claims.note(&None, &node, true, stream);
        }
        self.drop_claims(&node, |_, claim| claim.is_over());
        tracing::debug!(%node, all, pods = pods.len(), "a node claims addresses");
        for pod in pods {
            let key = ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name);
            let slot = self.by_key.get(&key).copied();
            self.claims.again.extend(slot);
            match addresses_of(&pod) {
                Some(addresses) if !addresses.is_empty() => {
                    let claim = Claim::new(key.clone(), addresses, By::Node, stream);
                    if !self.claims.insert(&node, &pod.uid, claim) {
                        tracing::warn!(%node, pod = %key, "too many claims of addresses; not used");
                    }
                }
                Some(_) => self.claims.drop_one(&node, &pod.uid),
                None => tracing::warn!(%node, pod = %key, "no claim of addresses; not used"),
            }
        }
        self.settle_claims();
    }

    /// Forgets what a node has said here, if it has no stream.
    pub(crate) fn forget_claims(&mut self, node: &str) {
        if self.streams(node).is_empty() {
            let node = self.name(node);
            self.drop_claims(&node, |_, claim| claim.by == By::Node);
            self.settle_claims();
        }
    }

    /// Lets claims of a node go, and has it decided again about its pods.
    pub(super) fn drop_claims(&mut self, node: &Arc<str>, goes: impl Fn(&str, &Claim) -> bool) {
        if self.claims.let_go(node, goes) {
            let of_node = |facts: &Facts| matches!(facts, Facts::Pod(pod) if *pod.node == **node);
            let claimed = self.claims.plain.iter().filter(|(_, (_, facts))| of_node(facts));
            let claimed: Vec<Slot> = claimed.map(|(slot, _)| *slot).collect();
            self.claims.again.extend(claimed);
        }
    }

    /// A pod's object goes.
    pub(super) fn forget_claim(&mut self, slot: Slot, uid: &str) {
        self.claims.plain.remove(&slot);
        self.claims.blocked.remove(&slot);
        if let Facts::Pod(pod) = &self.objects[slot as usize].facts {
            self.claims.drop_one(&pod.node, uid);
        }
    }

    /// An object as nodes are to see it: with the addresses that its node claims for it, if it may.
    pub(super) fn with_claim(
        &mut self,
        slot: Slot,
        content: Content,
        facts: Facts,
    ) -> (Content, Facts) {
        let Facts::Pod(pod) = &facts else { return (content, facts) };
        let counted = self.claims.plain.remove(&slot).is_some();
        let was_blocked = self.claims.blocked.remove(&slot);
        let Some(claim) = self.claims.of(&pod.node, content.uid()) else { return (content, facts) };
        if pod.host_network || pod.over || !pod.addresses.is_empty() {
            let node = Arc::clone(&pod.node);
            self.claims.drop_one(&node, content.uid());
            return (content, facts);
        }
        let (addresses, origin, stream) =
            (claim.addresses.clone(), claim.by.origin(), claim.stream);
        let of_others = |ip: &IpAddr| {
            self.addresses.get(ip).is_some_and(|slots| slots.iter().any(|other| *other != slot))
        };
        let taken = addresses.iter().any(of_others);
        if let Some(of_node) = self.claims.by_node.get_mut(&pod.node)
            && let Some(claim) = of_node.get_mut(content.uid())
        {
            claim.met = true;
        }
        // Others are told of what counts here.
        if counted == taken {
            self.claims.note(&origin, &pod.node, false, stream);
        }
        if taken {
            if !was_blocked {
                tracing::warn!(
                    node = %pod.node, pod = %self.objects[slot as usize].key, ?addresses,
                    "the node claims addresses for a pod that others have; not used"
                );
            }
            self.claims.blocked.insert(slot);
            return (content, facts);
        }
        let Some(claimed) = naming(&content, &addresses) else { return (content, facts) };
        let with = Facts::Pod(super::facts::PodFacts { addresses, ..pod.clone() });
        self.claims.plain.insert(slot, (content, facts));
        (claimed, with)
    }

    /// Decides again about claims that a change has touched.
    pub(super) fn settle_claims(&mut self) {
        while let Some(slot) = self.claims.again.pop() {
            let Some(object) = self.objects.get(slot as usize) else { continue };
            let key = object.key.clone();
            let plain = self.claims.plain.get(&slot).cloned();
            let present = || Some((object.content.clone()?, object.facts.clone()));
            let Some((content, facts)) = plain.or_else(present) else { continue };
            if matches!(facts, Facts::Pod(_)) {
                self.put(slot, &key, content, facts);
            }
        }
    }
}

/// The addresses of a claim; `None`: it cannot be one.
pub(super) fn addresses_of(pod: &AddressedPod) -> Option<Vec<IpAddr>> {
    if pod.uid.is_empty() || pod.uid.len() > MAX_UID || pod.addresses.len() > MAX_IPS {
        return None;
    }
    let mut addresses = Vec::with_capacity(pod.addresses.len());
    for text in &pod.addresses {
        let ip = text.parse::<IpAddr>().ok()?.to_canonical();
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if link_local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return None;
        }
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Some(addresses)
}

/// A pod's object, as if its status named these addresses.
fn naming(content: &Content, addresses: &[IpAddr]) -> Option<Content> {
    let key = Resource::decode(content.resource.clone()).ok()?.key?;
    let mut object: Value = serde_json::from_slice(&content.json).ok()?;
    let status = object.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    if status.is_null() {
        *status = json!({});
    }
    let status = status.as_object_mut()?;
    status.insert("podIP".to_owned(), json!(addresses.first()?));
    let all: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    status.insert("podIPs".to_owned(), all.into());
    let json = serde_json::to_vec(&object).ok()?;
    Some(Content::new(&key, content.uid(), &json, content.generation))
}
