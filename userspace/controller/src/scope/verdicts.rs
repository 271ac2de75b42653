//! What the nodes said about each object.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::Rejection;
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout};

use super::World;
use super::facts::Facts;
use super::replicas::Sum;

/// Faults that are kept of one rejection.
const MAX_FAULTS: usize = 16;
/// Bytes of each text of a fault that are kept.
const MAX_FAULT_TEXT: usize = 512;
/// Nodes whose rejections a [`Verdict`] lists; the others are counted.
pub const MAX_REJECTIONS: usize = 16;
/// Nodes without an answer that a [`Verdict`] names; the others are counted.
pub const MAX_WAITING: usize = 16;

/// How long a replica that begins to lead waits for the nodes of the one before, which come by
/// themselves.
const MIN_SETTLE: Duration = Duration::from_secs(2);
/// How long at most it waits for other replicas to tell what their nodes said.
const MAX_SETTLE: Duration = Duration::from_secs(8);

/// What the nodes that need an object make of its current version.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// `metadata.generation` of that version.
    pub generation: i64,
    /// Its version, for equality.
    pub version: Arc<str>,
    /// How many connected nodes need it, whichever replica serves them; each counts once.
    pub interested: usize,
    /// How many of them have taken this version.
    pub took: usize,
    /// How many of them have refused it.
    pub refused: usize,
    /// Some who refused it, by name, and why: at most [`MAX_REJECTIONS`].
    pub rejections: Vec<(Arc<str>, Arc<Rejection>)>,
    /// Some who have not answered, by name: at most [`MAX_WAITING`].
    pub waiting: Vec<Arc<str>>,
    /// How many replicas have not said yet what their nodes make of it.
    pub behind: usize,
    /// The object, trimmed, as nodes get it.
    pub json: Bytes,
}

/// The verdicts about Istio's kinds of objects, as they change.
#[derive(Clone, Debug)]
pub struct Verdicts {
    world: Arc<World>,
    own: Option<Own>,
}

/// Which pods are replicas of the controller.
#[derive(Clone, Debug)]
pub struct Own {
    /// Their namespace.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
    /// The one that this is.
    pub pod: String,
}

impl Verdicts {
    /// The verdicts of `world`, whose replica is the only one.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        Self { world, own: None }
    }

    /// The verdicts of `world` and of what the other replicas tell it.
    #[must_use]
    pub fn among(world: Arc<World>, own: Own) -> Self {
        Self { world, own: Some(own) }
    }

    /// Waits, when this replica begins to lead, until the others have told what their nodes said;
    /// not for ever. What is said before that is half of the truth.
    pub async fn settled(&self) {
        let Some(own) = &self.own else { return };
        let begun = Instant::now();
        sleep_until(begun + MIN_SETTLE).await;
        let all = async {
            while !self.missing(own).is_empty() {
                self.world.verdict_wake.notified().await;
            }
        };
        let _ = timeout(MAX_SETTLE.saturating_sub(MIN_SETTLE), all).await;
        let missing = self.missing(own);
        if missing.is_empty() {
            tracing::info!(after = ?begun.elapsed(), "all replicas have told of their nodes");
        } else {
            tracing::warn!(?missing, "replicas have not told of their nodes; those do not count");
        }
    }

    /// The replicas, by their pods, that have not told anything.
    fn missing(&self, own: &Own) -> Vec<String> {
        let state = self.world.state.lock();
        let pods = state.by_kind.get(&Kind::Pod).into_iter().flatten();
        let mut missing: Vec<String> = pods
            .map(|slot| state.object(*slot))
            .filter(|object| {
                *object.key.namespace == *own.namespace
                    && *object.key.name != *own.pod
                    && matches!(&object.facts, Facts::Pod(pod)
                        if !pod.over && *pod.service_account == *own.service_account)
            })
            .filter(|object| object.content.as_ref().is_some_and(|content| serves(&content.json)))
            .map(|object| (*object.key.name).to_owned())
            .collect();
        missing.retain(|pod| state.reporting().all(|reporting| reporting != pod));
        missing
    }

    /// Waits until some verdict may have changed since the last call, and returns which: also
    /// those of objects that are gone now. Meant for one caller. An object that is changed on and
    /// on is there once.
    pub async fn changed(&self) -> Vec<ObjectKey> {
        loop {
            let (changed, next) = self.take();
            if !changed.is_empty() {
                return changed;
            }
            let soon = next.unwrap_or_else(Instant::now);
            tokio::select! {
                () = self.world.verdict_wake.notified() => {}
                () = sleep_until(soon), if next.is_some() => {}
            }
        }
    }

    /// What has changed, and when more will by itself.
    fn take(&self) -> (Vec<ObjectKey>, Option<Instant>) {
        let mut state = self.world.state.lock();
        let next = state.forget_lost();
        (std::mem::take(&mut state.verdicts).into_iter().collect(), next)
    }

    /// Of one object; `None` if it does not exist.
    #[must_use]
    pub fn of(&self, key: &ObjectKey) -> Option<Verdict> {
        let mut state = self.world.state.lock();
        state.call_the_roll();
        let object = state.object(*state.by_key.get(key)?);
        let content = object.content.as_ref()?;
        let Sum { needed, taken, mut refused, mut waiting, behind, answered } =
            state.sum(object, content);
        let count = refused.len();
        refused.truncate(MAX_REJECTIONS);
        // Always the same ones.
        if waiting.len() > MAX_WAITING {
            waiting.select_nth_unstable(MAX_WAITING);
            waiting.truncate(MAX_WAITING);
        }
        waiting.sort_unstable();
        let verdict = Verdict {
            generation: content.generation,
            version: Arc::clone(&content.version),
            interested: needed,
            took: taken,
            refused: count,
            rejections: refused,
            waiting,
            behind,
            json: content.json.clone(),
        };
        state.forget_answered(key, &answered);
        Some(verdict)
    }

    /// Every object of Istio's kinds: for a writer that begins.
    #[must_use]
    pub fn all(&self) -> Vec<ObjectKey> {
        let state = self.world.state.lock();
        let kinds = state.by_kind.iter().filter(|(kind, _)| kind.is_istio());
        kinds.flat_map(|(_, slots)| slots).map(|slot| state.object(*slot).key.clone()).collect()
    }
}

/// Whether nodes may come to a pod of the controller: it is ready, and not on its way out.
fn serves(pod: &[u8]) -> bool {
    let Ok(pod) = serde_json::from_slice::<Value>(pod) else { return false };
    let going = pod.pointer("/metadata/deletionTimestamp").is_some();
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = |condition: &Value| {
        let is = |key: &str, value: &str| condition.get(key).is_some_and(|there| there == value);
        is("type", "Ready") && is("status", "True")
    };
    !going && conditions.into_iter().flatten().any(is_ready)
}

/// The rejection, cut to what is kept.
pub(crate) fn bounded(mut rejection: Rejection) -> Rejection {
    let left_out = rejection.faults.len().saturating_sub(MAX_FAULTS);
    rejection.faults.truncate(MAX_FAULTS);
    rejection.more = rejection.more.saturating_add(u32::try_from(left_out).unwrap_or(u32::MAX));
    for fault in &mut rejection.faults {
        for text in [&mut fault.field, &mut fault.message, &mut fault.allowed] {
            if text.len() > MAX_FAULT_TEXT {
                let end = (0..=MAX_FAULT_TEXT).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
            }
        }
    }
    rejection
}
