//! Services, with what belongs to them: their EndpointSlices and the pods behind those. All of it
//! is needed by the same nodes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::node_set::NodeSet;
use super::object::Slot;

/// Number of a unit.
pub(crate) type UnitId = u32;

/// A service by name, whether or not it exists: its endpoints may come first.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) service: Option<Slot>,
    pub(crate) slices: Vec<Slot>,
    /// The VirtualServices that send traffic to it.
    pub(crate) named_by: Vec<Slot>,
    /// The nodes that need it.
    pub(crate) wanted: NodeSet,
    /// The nodes that asked for its address.
    pub(crate) looked: NodeSet,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Units {
    all: Vec<Unit>,
    free: Vec<UnitId>,
    by_name: HashMap<(Arc<str>, Arc<str>), UnitId, RandomState>,
}

impl Units {
    pub(crate) fn get(&self, unit: UnitId) -> &Unit {
        &self.all[unit as usize]
    }

    pub(crate) fn get_mut(&mut self, unit: UnitId) -> &mut Unit {
        &mut self.all[unit as usize]
    }

    pub(crate) fn find(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<UnitId> {
        self.by_name.get(&(Arc::clone(namespace), Arc::clone(name))).copied()
    }

    /// The unit of that name, made if need be.
    pub(crate) fn named(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> UnitId {
        let key = (Arc::clone(namespace), Arc::clone(name));
        if let Some(unit) = self.by_name.get(&key) {
            return *unit;
        }
        let new =
            Unit { namespace: Arc::clone(namespace), name: Arc::clone(name), ..Unit::default() };
        let unit = match self.free.pop() {
            Some(unit) => {
                self.all[unit as usize] = new;
                unit
            }
            None => {
                self.all.push(new);
                u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_name.insert(key, unit);
        unit
    }

    /// Forgets the unit if there is nothing of it.
    pub(crate) fn settle(&mut self, unit: UnitId) {
        let of = &mut self.all[unit as usize];
        if of.service.is_none() && of.slices.is_empty() && of.named_by.is_empty() {
            let of = std::mem::take(of);
            if self.by_name.remove(&(of.namespace, of.name)).is_some() {
                self.free.push(unit);
            }
        }
    }

    /// All units that there are.
    pub(crate) fn ids(&self) -> Vec<UnitId> {
        self.by_name.values().copied().collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }
}
