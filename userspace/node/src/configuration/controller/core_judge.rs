//! What the node makes of objects, and how the controller is told.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::ObjectKey;
use fairlead_config::source::Parsed;
use fairlead_wire::config::{Fault, Key, Rejection, Verdicts};

use super::super::objects;
use super::super::verdicts::Refusal;
use super::Core;

/// Bytes of reasons in one Ack; the objects themselves take less than the Update that they came in.
const MAX_ACK_REASONS: usize = 1 << 20;

/// An object of an Update, and what is wrong with it by itself.
pub(super) struct Named {
    pub(super) path: Arc<PathBuf>,
    pub(super) key: Key,
    pub(super) version: String,
    pub(super) faults: Vec<Fault>,
}

/// Objects that have come and are to be judged.
#[derive(Default)]
pub(super) struct Judged {
    /// What is wrong with them by themselves.
    broken: Vec<(Arc<PathBuf>, Vec<Fault>)>,
    readable: Vec<Arc<PathBuf>>,
}

impl Judged {
    pub(super) fn add(&mut self, path: &Arc<PathBuf>, parsed: &Parsed) {
        let faults = objects::faults(&parsed.problems);
        if faults.is_empty() {
            self.readable.push(Arc::clone(path));
        } else {
            self.broken.push((Arc::clone(path), faults));
        }
    }
}

impl Core {
    /// What is made of objects that have come, and of those of which the compiler thinks otherwise.
    pub(super) fn judge(&mut self, judged: Judged, rejudged: HashSet<ObjectKey>) {
        let Judged { broken, readable } = judged;
        for (path, faults) in broken {
            let last_good = objects::key_of(&path).is_some_and(|key| self.knows(&key));
            self.verdicts.set(&path, Refusal::by_text(&faults, last_good));
            self.verdicts.list(&path);
        }
        if rejudged.is_empty() && self.verdicts.is_empty() {
            return;
        }
        let mut which: HashMap<ObjectKey, (Arc<PathBuf>, bool)> = HashMap::new();
        for path in readable {
            match objects::key_of(&path).and_then(|key| objects::object_key(&key)) {
                Some(key) => {
                    which.insert(key, (path, true));
                }
                None => {
                    self.verdicts.set(&path, None);
                }
            }
        }
        for key in rejudged {
            if !which.contains_key(&key)
                && let Some(path) = self.held.path(&key)
                && !self.verdicts.is_by_text(&path)
            {
                which.insert(key, (path, false));
            }
        }
        let mut errors = self.follower.errors(|key| which.contains_key(key));
        for (key, (path, came)) in which {
            let refusal = Refusal::by_compiler(&errors.remove(&key).unwrap_or_default());
            let refused = refusal.is_some();
            let changed = self.verdicts.set(&path, refusal);
            // What has come counts as taken unless the controller hears otherwise.
            if if came { refused } else { changed } {
                self.verdicts.list(&path);
            }
        }
    }

    /// The next of what the controller is not told with the objects themselves.
    pub(in super::super) fn news(&mut self) -> Option<Verdicts> {
        let news = self.verdicts.news(&self.held)?;
        let refused = news.changed.iter().filter(|changed| changed.rejected.is_some()).count();
        self.status.update(|facts| facts.rejected += refused as u64);
        Some(news)
    }

    /// Whether there is any.
    pub(in super::super) fn has_news(&self) -> bool {
        self.verdicts.has_news()
    }

    /// What is refused of an Update, as far as it is known: all of it once everything is in force.
    pub(super) fn rejections(&mut self, named: Vec<Named>, in_force: bool) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        let mut reasons = 0;
        for Named { path, key, version, faults } in named {
            let rejection = if in_force {
                self.verdicts.said(&path);
                self.verdicts.refusal(&path).map(Refusal::rejection)
            } else {
                Refusal::by_text(&faults, self.knows(&key)).map(|refusal| refusal.rejection())
            };
            let Some(mut rejection) = rejection else { continue };
            let texts = |f: &Fault| f.field.len() + f.message.len() + f.allowed.len();
            reasons += rejection.faults.iter().map(texts).sum::<usize>();
            if reasons > MAX_ACK_REASONS && !rejection.faults.is_empty() {
                (rejection.faults, rejection.more) = (Vec::new(), 0);
                if in_force {
                    self.verdicts.list(&path);
                }
            }
            rejections.push(Rejection { key: Some(key), version, ..rejection });
        }
        rejections
    }
}
