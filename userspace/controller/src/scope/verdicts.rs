//! What the nodes said about each object.

use std::sync::Arc;

use bytes::Bytes;
use fairlead_api::ObjectKey;
use fairlead_wire::config::Rejection;

use super::World;

/// Faults that are kept of one rejection.
const MAX_FAULTS: usize = 16;
/// Bytes of each text of a fault that are kept.
const MAX_FAULT_TEXT: usize = 512;
/// Nodes whose rejections a [`Verdict`] lists; the others are counted.
pub const MAX_REJECTIONS: usize = 16;

/// What the nodes that need an object make of its current version.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// `metadata.generation` of that version.
    pub generation: i64,
    /// Its version, for equality.
    pub version: Arc<str>,
    /// How many connected nodes need it.
    pub interested: usize,
    /// How many of them have taken this version.
    pub took: usize,
    /// How many of them have refused it.
    pub refused: usize,
    /// Some who refused it, by name, and why: at most [`MAX_REJECTIONS`].
    pub rejections: Vec<(Arc<str>, Arc<Rejection>)>,
    /// The object, trimmed, as nodes get it.
    pub json: Bytes,
}

/// The verdicts about Istio's kinds of objects, as they change.
#[derive(Clone, Debug)]
pub struct Verdicts(Arc<World>);

impl Verdicts {
    /// The verdicts of `world`.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        Self(world)
    }

    /// Waits until some verdict may have changed since the last call, and returns which: also
    /// those of objects that are gone now. Meant for one caller. An object that is changed on and
    /// on is there once.
    pub async fn changed(&self) -> Vec<ObjectKey> {
        loop {
            let changed = self.take();
            if !changed.is_empty() {
                return changed;
            }
            self.0.verdict_wake.notified().await;
        }
    }

    fn take(&self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.0.state.lock().verdicts).into_iter().collect()
    }

    /// Of one object; `None` if it does not exist.
    #[must_use]
    pub fn of(&self, key: &ObjectKey) -> Option<Verdict> {
        let state = self.0.state.lock();
        let object = state.object(*state.by_key.get(key)?);
        let content = object.content.as_ref()?;
        let rejections = object.refusals.iter().take(MAX_REJECTIONS).filter_map(|(node, why)| {
            Some((Arc::clone(&state.node(*node)?.name), Arc::clone(why)))
        });
        Some(Verdict {
            generation: content.generation,
            version: Arc::clone(&content.version),
            interested: object.wanted.len(),
            took: object.taken.len(),
            refused: object.refusals.len(),
            rejections: rejections.collect(),
            json: content.json.clone(),
        })
    }

    /// Every object of Istio's kinds: for a writer that begins.
    #[must_use]
    pub fn all(&self) -> Vec<ObjectKey> {
        let state = self.0.state.lock();
        let kinds = state.by_kind.iter().filter(|(kind, _)| kind.is_istio());
        kinds.flat_map(|(_, slots)| slots).map(|slot| state.object(*slot).key.clone()).collect()
    }
}

/// The rejection, cut to what is kept.
pub(crate) fn bounded(mut rejection: Rejection) -> Rejection {
    rejection.faults.truncate(MAX_FAULTS);
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
