//! What this replica's nodes made of objects, for the leading replica: everything first, then what
//! has changed, each object in its last state.

use std::sync::Arc;

use fairlead_api::ObjectKey;
use fairlead_wire::replica::{self as wire, MAX_STREAMS, Report};
use prost::Message as _;
use tokio::time::Instant;

use super::World;
use super::node_set::NodeId;
use super::object::Object;
use super::picture::{Nonsense, Picture};
use super::state::{Map, Set, State};
use super::verdicts::MAX_REJECTIONS;

/// Bytes of verdicts after which a Report is full; one that is begun before that is small enough
/// for the rest of [`wire::MAX_MESSAGE_BYTES`].
const FULL: usize = 1 << 20;
/// Streams that one Report tells of.
const MAX_TOLD: usize = 4096;
/// Objects whose verdict changed that may be listed while nobody leads here, before those that are
/// gone are let go.
const MAX_LISTED: usize = 4096;

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Objects; `None` while nobody is told.
    objects: Option<Set<ObjectKey>>,
    /// Streams came or went.
    streams: bool,
}

impl Telling {
    /// Whether there is something to tell.
    pub(super) fn has_news(&self) -> bool {
        self.objects.as_ref().is_some_and(|objects| self.streams || !objects.is_empty())
    }

    /// Puts an object on the list.
    pub(super) fn list(&mut self, key: &ObjectKey) {
        if let Some(objects) = &mut self.objects
            && !objects.contains(key)
        {
            objects.insert(key.clone());
        }
    }
}

impl State {
    /// Streams came or went.
    pub(super) fn streams_changed(&mut self) {
        self.telling.streams = true;
        self.replicas.roster_is_old = true;
    }

    /// The next Report; `told` is what the leader knows of streams.
    fn report(&mut self, told: &mut Map<NodeId, u64>, nonce: u64) -> Report {
        let mut report = Report { nonce, ..Report::default() };
        let whole = self.report_streams(told, &mut report);
        self.telling.streams = !whole;
        if !whole {
            // No object before the streams that it names.
            return report;
        }
        // Who does not lead keeps no status: what it has listed for that must not grow for ever.
        if self.verdicts.len() > self.by_key.len() + MAX_LISTED {
            let by_key = &self.by_key;
            self.verdicts.retain(|key| by_key.contains_key(key));
        }
        let mut keys = self.telling.objects.take().unwrap_or_default();
        let mut bytes = 0;
        let mut done: Vec<ObjectKey> = Vec::new();
        for key in &keys {
            if bytes >= FULL {
                break;
            }
            let object = self.by_key.get(key).map(|slot| self.object(*slot));
            match object.and_then(|object| verdict(object, told)) {
                Some(verdict) => {
                    bytes += verdict.encoded_len();
                    report.verdicts.push(verdict);
                }
                None => {
                    let key = wire_key(key);
                    bytes += key.encoded_len();
                    report.gone.push(key);
                }
            }
            done.push(key.clone());
        }
        if done.len() == keys.len() {
            keys.clear();
        } else {
            for key in &done {
                keys.remove(key);
            }
        }
        report.complete = keys.is_empty();
        self.telling.objects = Some(keys);
        report
    }

    /// Whether all could be told.
    fn report_streams(&self, told: &mut Map<NodeId, u64>, report: &mut Report) -> bool {
        let epoch = |id: NodeId| self.node(id).map(|node| node.epoch);
        let over: Vec<NodeId> = told
            .iter()
            .filter(|(id, known)| epoch(**id) != Some(**known))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            told.remove(&id);
            report.ended.push(number(id));
        }
        let now = Instant::now();
        for id in self.connected.iter().take_while(|id| *id < MAX_STREAMS) {
            let Some(node) = self.node(id).filter(|_| !told.contains_key(&id)) else { continue };
            if report.begun.len() >= MAX_TOLD {
                return false;
            }
            told.insert(id, node.epoch);
            let age = now.duration_since(node.since).as_millis();
            report.begun.push(wire::Stream {
                id: number(id),
                node: (*node.name).to_owned(),
                age_millis: u64::try_from(age).unwrap_or(u64::MAX),
            });
        }
        true
    }
}

fn number(id: NodeId) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

fn wire_key(key: &ObjectKey) -> wire::Key {
    wire::Key {
        kind: key.kind.as_str().to_owned(),
        namespace: (*key.namespace).to_owned(),
        name: (*key.name).to_owned(),
    }
}

/// What is said of an object; `None` if it is gone.
fn verdict(object: &Object, told: &Map<NodeId, u64>) -> Option<wire::Verdict> {
    let content = object.content.as_ref()?;
    let refused = object.refusals.iter().filter(|(id, _)| told.contains_key(id));
    let refused = refused.enumerate().map(|(n, (id, why))| wire::Refusal {
        stream: number(*id),
        last_good: why.last_good,
        faults: if n < MAX_REJECTIONS {
            why.faults.iter().map(fault).collect()
        } else {
            Vec::new()
        },
        more: if n < MAX_REJECTIONS { why.more } else { 0 },
    });
    Some(wire::Verdict {
        key: Some(wire_key(&object.key)),
        version: (*content.version).to_owned(),
        generation: content.generation,
        needed: object.wanted.to_bytes(MAX_STREAMS),
        taken: object.taken.to_bytes(MAX_STREAMS),
        refused: refused.collect(),
    })
}

fn fault(fault: &fairlead_wire::config::Fault) -> wire::Fault {
    wire::Fault {
        field: fault.field.clone(),
        message: fault.message.clone(),
        allowed: fault.allowed.clone(),
    }
}

/// Tells the leading replica, for as long as it lives. There is one at a time.
#[derive(Debug)]
pub(crate) struct Teller {
    world: Arc<World>,
    told: Map<NodeId, u64>,
}

impl Teller {
    /// Begins with everything.
    pub(crate) fn new(world: Arc<World>) -> Self {
        let mut state = world.state.lock();
        let kinds = state.by_kind.iter().filter(|(kind, _)| kind.is_istio());
        let all = kinds.flat_map(|(_, slots)| slots).map(|slot| state.object(*slot).key.clone());
        let all = all.collect();
        state.telling = Telling { objects: Some(all), streams: true };
        drop(state);
        Self { world, told: Map::default() }
    }

    /// Waits until there may be something to tell.
    pub(crate) async fn news(&self) {
        self.world.telling_wake.notified().await;
    }

    /// Whether there is something to tell.
    pub(crate) fn has_news(&self) -> bool {
        self.world.state.lock().telling.has_news()
    }

    /// The next Report.
    pub(crate) fn report(&mut self, nonce: u64) -> Report {
        self.world.state.lock().report(&mut self.told, nonce)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.world.state.lock().telling = Telling::default();
    }
}

impl World {
    /// Takes what a replica told in as a whole.
    pub(crate) fn adopt(&self, session: u64, pod: &str, instance: &str, picture: Picture) {
        let mut state = self.state.lock();
        state.adopt(session, pod, instance, picture);
        // Also when it is empty: somebody waits for it.
        self.verdict_wake.notify_one();
    }

    /// Takes in what has changed since.
    pub(crate) fn amend(&self, session: u64, report: Report) -> Result<(), Nonsense> {
        let mut state = self.state.lock();
        let amended = state.amend(session, report);
        self.tell_verdicts(&state);
        amended
    }

    /// The stream by which a replica told has ended.
    pub(crate) fn lose(&self, session: u64, stays: bool) {
        let mut state = self.state.lock();
        state.lose(session, stays);
        // Also when nothing has changed yet: somebody has to look when its time is over.
        self.verdict_wake.notify_one();
    }
}
