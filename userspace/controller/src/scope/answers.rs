//! What nodes say of the objects that they have been told.

use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::{Ack, Held, Key, Rejection};

use super::node::Ticket;
use super::node_set::NodeId;
use super::object::Slot;
use super::state::{Map, State};
use super::verdicts::bounded;

impl State {
    /// What the node said to the Update that was taken last. Returns how many objects it refused.
    pub(crate) fn acknowledge(&mut self, ticket: &Ticket, ack: Ack) -> usize {
        if !self.is_current(ticket) {
            return 0;
        }
        let node = ticket.node;
        let Some(state) = self.node_mut(node) else { return 0 };
        state.synced |= state.complete;
        let (synced, in_flight) = (state.synced, std::mem::take(&mut state.in_flight));
        let mut refused: Map<Slot, Rejection> = Map::default();
        for rejection in ack.rejected {
            let slot = rejection.key.as_ref().and_then(|key| self.slot_of_key(key));
            if let Some(slot) = slot {
                refused.insert(slot, rejection);
            }
        }
        let count = refused.len();
        let mut later = Vec::new();
        for (slot, sequence) in in_flight {
            let object = self.object(slot);
            let current = object.content.as_ref().is_some_and(|c| c.sequence == sequence);
            if !current || !object.wanted.contains(node) {
                continue;
            }
            match refused.remove(&slot) {
                Some(rejection) => self.judge(slot, node, Some(rejection)),
                // Objects are judged together: what is right by itself may yet be refused.
                None if !synced && object.key.kind.is_istio() => later.push((slot, sequence)),
                None if !object.refusals.contains_key(&node) => self.judge(slot, node, None),
                None => {}
            }
        }
        if let Some(state) = self.node_mut(node) {
            state.in_flight = later;
        }
        count
    }

    /// What the node says of objects that it has had before. Returns how many it refuses.
    pub(crate) fn hear_verdicts(&mut self, ticket: &Ticket, changed: Vec<Held>) -> usize {
        if !self.is_current(ticket) {
            return 0;
        }
        let mut refused = 0;
        for Held { key, version, rejected } in changed {
            let slot = key.as_ref().and_then(|key| self.slot_of_key(key));
            let Some(slot) = slot else { continue };
            refused += usize::from(rejected.is_some());
            // Of another version there is an Update on its way.
            if self.is_about(slot, ticket.node, &version) {
                self.judge(slot, ticket.node, rejected);
            }
        }
        refused
    }

    fn slot_of_key(&self, key: &Key) -> Option<Slot> {
        let kind = Kind::from_name(&key.kind)?;
        self.by_key.get(&ObjectKey::new(kind, &key.namespace, &key.name)).copied()
    }

    /// Whether a node that names this version of an object means what it has been sent.
    fn is_about(&self, slot: Slot, node: NodeId, version: &str) -> bool {
        let object = self.object(slot);
        object.content.as_ref().is_some_and(|content| *content.version == *version)
            && object.wanted.contains(node)
            && object.held.contains(node)
    }

    /// Files what a node makes of an object.
    pub(super) fn judge(&mut self, slot: Slot, node: NodeId, rejection: Option<Rejection>) {
        let object = self.object_mut(slot);
        match rejection.map(bounded) {
            Some(refusal) => {
                object.refusals.insert(node, Arc::new(refusal));
                object.taken.remove(node);
            }
            None => {
                object.refusals.remove(&node);
                object.taken.insert(node);
            }
        }
        self.list_verdict(slot);
    }
}
