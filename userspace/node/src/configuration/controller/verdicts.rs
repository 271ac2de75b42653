//! What the node refuses of what it holds, and what of that the controller has not been told.
//!
//! An object is refused for what it says itself, until another version of it comes; or for what
//! the compiler makes of it among all others, which changes when these do. So each change ends with
//! the objects that came and those of which the compiler thinks otherwise now being judged anew.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_config::compile::Problem;
use fairlead_wire::config::{self as wire, Fault, MAX_VERDICTS, Rejection};

use super::objects::{self, Held};

/// Refused objects of which the reason is kept; others are refused without.
const MAX_REASONS: usize = 10_000;
/// Bytes that are kept of each text of a reason.
const MAX_TEXT: usize = 256;

/// All that is refused.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    refused: HashMap<Arc<PathBuf>, Refusal>,
    /// How many of them have a reason.
    reasons: usize,
    /// Objects that the controller may take for something else than they are.
    unsaid: BTreeSet<Arc<PathBuf>>,
}

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    /// For what it says itself.
    by_text: bool,
    last_good: bool,
    why: Option<Box<Why>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Why {
    first: Fault,
    more: u32,
}

impl Refusal {
    /// Of an object that has these faults by itself; `last_good`: an earlier version is in force.
    pub(super) fn by_text(faults: &[Fault], last_good: bool) -> Option<Self> {
        let (first, rest) = faults.split_first()?;
        let first = Fault {
            field: short(&first.field),
            message: short(&first.message),
            allowed: short(&first.allowed),
        };
        Some(Self { by_text: true, last_good, why: Why::new(first, rest.len()) })
    }

    /// Of an object that is in force but for these.
    pub(super) fn by_compiler(errors: &[Problem]) -> Option<Self> {
        let (first, rest) = errors.split_first()?;
        let first = Fault {
            field: short(&first.field),
            message: short(&first.message),
            allowed: String::new(),
        };
        Some(Self { by_text: false, last_good: false, why: Why::new(first, rest.len()) })
    }

    /// As it is told, without key and version.
    pub(super) fn rejection(&self) -> Rejection {
        let why = self.why.as_deref();
        Rejection {
            last_good: self.last_good,
            faults: why.map(|why| why.first.clone()).into_iter().collect(),
            more: why.map_or(0, |why| why.more),
            ..Rejection::default()
        }
    }
}

impl Why {
    fn new(first: Fault, more: usize) -> Option<Box<Self>> {
        Some(Box::new(Self { first, more: u32::try_from(more).unwrap_or(u32::MAX) }))
    }
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

impl Verdicts {
    /// Whether nothing is refused.
    pub(super) fn is_empty(&self) -> bool {
        self.refused.is_empty()
    }

    /// Why an object is refused, if it is.
    pub(super) fn refusal(&self, path: &PathBuf) -> Option<&Refusal> {
        self.refused.get(path)
    }

    /// Whether an object is refused for what it says itself, whatever there is beside it.
    pub(super) fn is_by_text(&self, path: &PathBuf) -> bool {
        self.refused.get(path).is_some_and(|refusal| refusal.by_text)
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, path: &PathBuf) {
        self.unsaid.remove(path);
        self.remove(path);
    }

    /// What is made of an object now; whether that is another thing than before.
    pub(super) fn set(&mut self, path: &Arc<PathBuf>, refusal: Option<Refusal>) -> bool {
        if self.refused.get(path) == refusal.as_ref() {
            return false;
        }
        self.remove(path);
        if let Some(mut refusal) = refusal {
            if self.reasons >= MAX_REASONS {
                refusal.why = None;
            }
            self.reasons += usize::from(refusal.why.is_some());
            self.refused.insert(Arc::clone(path), refusal);
        }
        true
    }

    fn remove(&mut self, path: &PathBuf) {
        if let Some(old) = self.refused.remove(path) {
            self.reasons -= usize::from(old.why.is_some());
        }
    }

    /// The controller has to be told what is made of an object, if it writes the status of such.
    pub(super) fn list(&mut self, path: &Arc<PathBuf>) {
        let key = objects::key_of(path).and_then(|key| objects::object_key(&key));
        if key.is_some_and(|key| key.kind.is_istio()) {
            self.unsaid.insert(Arc::clone(path));
        }
    }

    /// The controller is told what is made of an object.
    pub(super) fn said(&mut self, path: &PathBuf) {
        self.unsaid.remove(path);
    }

    /// The same of all.
    pub(super) fn all_said(&mut self) {
        self.unsaid.clear();
    }

    /// Whether there is something to tell.
    pub(super) fn has_news(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// The next that is to be told.
    pub(super) fn news(&mut self, held: &Held) -> Option<wire::Verdicts> {
        let mut changed = Vec::new();
        while changed.len() < MAX_VERDICTS
            && let Some(path) = self.unsaid.pop_first()
        {
            let Some(version) = held.version(&path) else { continue };
            changed.push(wire::Held {
                key: objects::key_of(&path),
                version: version.to_owned(),
                rejected: self.refusal(&path).map(Refusal::rejection),
            });
        }
        (!changed.is_empty()).then_some(wire::Verdicts { changed })
    }
}

#[cfg(test)]
#[path = "verdicts_tests.rs"]
mod tests;
