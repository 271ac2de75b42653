//! The last good state of every object.
//!
//! An object belongs to the files that hold it; if several do, the one that came first counts (of
//! those that came together the first in order of paths) and the others are errors. A version that is refused never replaces a good one, and a
//! file that cannot be read changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::core::{Node, Service};
use fairlead_api::{Kind, ObjectKey, Resource, StringMap};

use super::document::{Parsed, Rejected, is_of_security};
use super::kept::{File, FileState, Objects};
use super::loader::Load;
use super::problem::{ObjectRef, Problem, Severity};

/// What one [`Store::apply`] changed.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Objects that are new or differ from before.
    pub upserted: Vec<ObjectKey>,
    /// Objects that have gone.
    pub removed: Vec<ObjectKey>,
    /// Whether the set of refused objects ([`Store::rejected`]) is another than before.
    pub rejected_changed: bool,
    /// What is wrong in the files of this change; [`Store::problems`] has those of all files.
    pub problems: Vec<Problem>,
}

impl Change {
    /// Whether nothing changed that anybody acts upon.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserted.is_empty() && self.removed.is_empty() && !self.rejected_changed
    }
}

/// An object of which the written version is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whether an earlier good version is in force. If not, a security policy has to fail closed
    /// for its scope.
    pub last_good: bool,
    /// The workloads of its scope, as far as they could be read; empty means all of the
    /// namespace, or of the mesh in the root namespace.
    pub selector: StringMap,
}

/// Every object in its last good version.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<Arc<PathBuf>, File>,
    objects: Objects,
    rejected: BTreeMap<ObjectKey, Refused>,
    /// What is left of refused Pods and Namespaces without a good version; among `objects`.
    salvaged: BTreeMap<ObjectKey, Resource>,
    unlisted: Vec<Problem>,
    /// The files that are anything but good throughout: few of many, where every object has a file
    /// of its own.
    flawed: BTreeSet<Arc<PathBuf>>,
    /// What stands for a Service and a Node of which the content was let go.
    empty: (Arc<Service>, Arc<Node>),
}

impl FileState {
    /// Whether the file, as it is written now, may hold something that security depends on, and
    /// of which neither a good version nor the key is known.
    fn suspects(&self, mentions: Option<usize>) -> bool {
        let Some(mentions) = mentions else { return !self.held || self.suspect };
        let refused: BTreeSet<&ObjectKey> = self.rejected.iter().map(|r| &r.key).collect();
        let objects = self.objects.keys().filter(|key| !refused.contains(key));
        let known = objects.chain(refused.iter().copied()).filter(|key| is_of_security(key));
        mentions > self.mentions.max(known.count())
    }
}

impl Store {
    /// Takes in what a [`super::Loader`] found.
    pub fn apply(&mut self, load: Load) -> Change {
        let mut change = Change::default();
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        for file in load.gone {
            if let Some(state) = self.files.remove(&file) {
                self.flawed.remove(&file);
                for key in FileState::from(state).objects.into_keys() {
                    self.objects.leave(&key, &file);
                    touched.insert(key);
                }
            }
        }
        let mut taken = Vec::with_capacity(load.files.len());
        for (file, parsed) in load.files {
            self.take(&file, parsed, &mut touched);
            taken.push(Arc::clone(&file));
            if let Some(state) = self.files.get(&file) {
                change.problems.extend(state.problems().iter().cloned());
            }
        }
        for file in &taken {
            self.adopt(file);
        }
        for key in touched {
            self.settle(key, &mut change);
        }
        self.salvage(&mut change);
        let rejected = self.refused();
        change.rejected_changed = rejected != self.rejected;
        self.rejected = rejected;
        change.problems.extend(load.unlisted.iter().cloned());
        self.unlisted = load.unlisted;
        change
    }

    /// Lets go of the content of objects that a compiler has taken in, and needs no more to compile
    /// anything else: Services and Nodes. They stay known, but are empty from here on; written once
    /// more as they were, they count as changed. Only for whoever asks for no object twice.
    pub fn let_go(&mut self, keys: &[ObjectKey]) {
        for key in keys {
            let empty = match key.kind {
                Kind::Service => Resource::Service(Arc::clone(&self.empty.0)),
                Kind::Node => Resource::Node(Arc::clone(&self.empty.1)),
                _ => continue,
            };
            // What several files hold is needed when one of them goes.
            let file = self.objects.first(key).filter(|_| self.objects.others(key).is_empty());
            let file = file.and_then(|file| self.files.get_mut(file));
            let kept = file.and_then(|file| file.get_mut(key));
            if let (Some(kept), Some(object)) = (kept, self.objects.get_mut(key)) {
                kept.clone_from(&empty);
                *object = empty;
            }
        }
    }

    /// An object.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&Resource> {
        self.objects.get(key)
    }

    /// The file whose version of an object counts.
    #[must_use]
    pub fn file_of(&self, key: &ObjectKey) -> Option<&Arc<PathBuf>> {
        self.objects.first(key)
    }

    /// How many files there are.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// All objects, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Resource)> {
        self.objects.iter()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.len() == 0
    }

    /// The objects of which the written version is refused.
    #[must_use]
    pub fn rejected(&self) -> &BTreeMap<ObjectKey, Refused> {
        &self.rejected
    }

    /// The refused security policies that have no good version in force: their scopes have to
    /// fail closed. The mesh's settings are among them: without them nobody knows how paths are
    /// normalized, nor which policies are those of the whole mesh.
    pub fn fail_closed(&self) -> impl Iterator<Item = (&ObjectKey, &Refused)> {
        self.rejected.iter().filter(|(key, refused)| is_of_security(key) && !refused.last_good)
    }

    /// The Namespaces and Pods that are refused and have no good version: whom they would enrol is
    /// refused, or, where not even labels could be read, outside the mesh.
    pub fn unenrolled(&self) -> impl Iterator<Item = &ObjectKey> {
        let enrols = |kind| matches!(kind, Kind::Namespace | Kind::Pod);
        let bad = self.rejected.iter().filter(move |(key, r)| enrols(key.kind) && !r.last_good);
        bad.map(|(key, _)| key)
    }

    /// The files that cannot be read now. What they held before stays in force; a file that has
    /// never been readable may hold anything.
    pub fn unreadable(&self) -> impl Iterator<Item = &Arc<PathBuf>> {
        self.flawed().filter(|(_, state)| state.unreadable).map(|(file, _)| file)
    }

    /// The files that cannot be read, wholly or in part, and seem to hold more security policies
    /// (or settings of the mesh) than are in force or known by name. Nobody knows what they
    /// forbid, nor to whom.
    pub fn suspects(&self) -> impl Iterator<Item = &Arc<PathBuf>> {
        self.flawed().filter(|(_, state)| state.suspect).map(|(file, _)| file)
    }

    /// All objects of a kind, in no order.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(_, resource)| resource)
    }

    /// Everything that is wrong now, by file.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let of_files = self.flawed().flat_map(|(_, state)| &state.problems);
        let mut problems: Vec<Problem> = self.unlisted.iter().chain(of_files).cloned().collect();
        problems.extend(self.objects.shared().flat_map(|key| self.duplicates(key)));
        problems.sort_by(|a, b| (&a.file, a.document, a.line).cmp(&(&b.file, b.document, b.line)));
        problems
    }

    /// The paths that could not be listed at the last look.
    #[must_use]
    pub fn unlisted(&self) -> &[Problem] {
        &self.unlisted
    }

    /// Brings one file up to date.
    fn take(&mut self, file: &Arc<PathBuf>, parsed: Parsed, touched: &mut BTreeSet<ObjectKey>) {
        let mut before = self.files.remove(file).map_or_else(Default::default, FileState::from);
        if parsed.unreadable {
            before.problems = parsed.problems;
            before.unreadable = true;
            before.suspect = before.suspects(parsed.mentions);
            self.put(file, before);
            return;
        }
        let mut state = FileState {
            problems: parsed.problems,
            rejected: parsed.rejected,
            salvaged: parsed.salvaged,
            held: true,
            mentions: if parsed.lost { before.mentions } else { parsed.mentions.unwrap_or(0) },
            ..FileState::default()
        };
        for resource in parsed.objects {
            let key = self.key_of(&resource);
            if state.objects.contains_key(&key) {
                state.problems.push(duplicate(file, &key, file));
                if key.kind.is_security() {
                    state.rejected.push(Rejected { key, selector: StringMap::new() });
                }
                continue;
            }
            state.objects.insert(key, resource);
        }
        let keep: Vec<ObjectKey> = if parsed.lost {
            before.objects.keys().filter(|key| !state.objects.contains_key(*key)).cloned().collect()
        } else {
            state.rejected.iter().map(|rejected| rejected.key.clone()).collect()
        };
        for key in keep {
            if !state.objects.contains_key(&key)
                && let Some(resource) = before.objects.remove(&key)
            {
                state.objects.insert(key, resource);
            }
        }
        state.suspect = parsed.lost && state.suspects(parsed.mentions);
        for key in before.objects.keys().filter(|key| !state.objects.contains_key(*key)) {
            self.objects.leave(key, file);
            touched.insert(key.clone());
        }
        for (key, resource) in &mut state.objects {
            match before.objects.remove(key) {
                // Whoever holds the old one shares it.
                Some(old) if old == *resource => *resource = old,
                Some(_) => {
                    touched.insert(key.clone());
                }
                None => {
                    touched.insert(key.clone());
                    self.objects.enter(key, file);
                }
            }
        }
        self.put(file, state);
    }

    /// The key of an object, with the name of its namespace as the Namespace has it, if there is one:
    /// one text for all.
    fn key_of(&self, resource: &Resource) -> ObjectKey {
        let mut key = resource.key();
        let namespace =
            ObjectKey { kind: Kind::Namespace, namespace: "".into(), name: key.namespace };
        key.namespace = match self.objects.key(&namespace) {
            Some(known) => Arc::clone(&known.name),
            None => namespace.name,
        };
        key
    }

    fn put(&mut self, file: &Arc<PathBuf>, state: FileState) {
        if state.is_good() {
            self.flawed.remove(file);
        } else {
            self.flawed.insert(Arc::clone(file));
        }
        self.files.insert(Arc::clone(file), state.into());
    }

    fn flawed(&self) -> impl Iterator<Item = (&Arc<PathBuf>, &FileState)> {
        let files = self.flawed.iter().filter_map(|file| self.files.get_key_value(file));
        files.filter_map(|(file, state)| Some((file, state.flawed()?)))
    }

    /// Keeps the last good version of a refused object that came here from a file that no longer
    /// has it.
    fn adopt(&mut self, file: &Arc<PathBuf>) {
        let Some(state) = self.files.get_mut(file).and_then(File::flawed_mut) else { return };
        for Rejected { key, .. } in &state.rejected {
            let good = self.objects.get(key).filter(|_| !self.salvaged.contains_key(key));
            if let (None, Some(good)) = (self.objects.first(key), good) {
                state.objects.insert(key.clone(), good.clone());
                self.objects.enter(key, file);
            }
        }
    }

    /// Decides which version of an object counts, now that some file has changed it.
    fn settle(&mut self, key: ObjectKey, change: &mut Change) {
        change.problems.extend(self.duplicates(&key));
        let winner = self.objects.first(&key).and_then(|file| self.files.get(file)?.get(&key));
        let Some(winner) = winner.cloned() else {
            if self.objects.remove(&key) {
                change.removed.push(key);
            }
            return;
        };
        if self.objects.get(&key) != Some(&winner) {
            self.objects.insert(&key, winner);
            change.upserted.push(key);
        }
    }

    /// The problems of an object that several files hold: all but the first are in vain.
    fn duplicates(&self, key: &ObjectKey) -> impl Iterator<Item = Problem> {
        let first = self.objects.first(key);
        let others = self.objects.others(key).iter();
        others.filter_map(|file| Some(duplicate(file, key, first?))).collect::<Vec<_>>().into_iter()
    }

    /// Whether a good version is in force.
    fn is_good(&self, key: &ObjectKey) -> bool {
        self.objects.first(key).is_some()
    }

    /// Puts what is left of refused objects in the place of good ones that never were.
    fn salvage(&mut self, change: &mut Change) {
        let left = self.flawed().flat_map(|(_, state)| &state.salvaged);
        let left = left.map(|resource| (resource.key(), resource.clone()));
        let salvaged: BTreeMap<ObjectKey, Resource> =
            left.filter(|(key, _)| !self.is_good(key)).collect();
        let before = std::mem::take(&mut self.salvaged);
        for key in before.into_keys() {
            let gone = !salvaged.contains_key(&key) && !self.is_good(&key);
            if gone && self.objects.remove(&key) {
                change.removed.push(key);
            }
        }
        for (key, resource) in &salvaged {
            change.removed.retain(|removed| removed != key);
            if self.objects.get(key) != Some(resource) {
                self.objects.insert(key, resource.clone());
                change.upserted.push(key.clone());
            }
        }
        self.salvaged = salvaged;
    }

    fn refused(&self) -> BTreeMap<ObjectKey, Refused> {
        let mut refused = BTreeMap::new();
        for Rejected { key, selector } in self.flawed().flat_map(|(_, state)| &state.rejected) {
            let last_good = self.is_good(key);
            refused.insert(key.clone(), Refused { last_good, selector: selector.clone() });
        }
        // Of two policies of one name, one has no effect: that must not go unnoticed either.
        for key in self.objects.shared().filter(|key| key.kind.is_security()) {
            refused
                .entry(key.clone())
                .or_insert(Refused { last_good: true, selector: StringMap::new() });
        }
        refused
    }
}

fn duplicate(file: &Arc<PathBuf>, key: &ObjectKey, first: &Arc<PathBuf>) -> Problem {
    Problem {
        severity: Severity::Error,
        object: Some(ObjectRef {
            kind: key.kind.to_string(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }),
        ..Problem::of_file(
            file,
            format!("this object is already in {}; this version is not used", first.display()),
            Some("each object once".to_owned()),
        )
    }
}
