//! What the store keeps of files, and of objects and who holds them. Where every object has a file of
//! its own there are tens of thousands of either, nearly all of them with one object and one
//! holder: that form is small.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::{ObjectKey, Resource};

use super::document::Rejected;
use super::problem::Problem;

/// One file as it counts now.
#[derive(Debug, Default)]
pub(super) struct FileState {
    pub(super) objects: HashMap<ObjectKey, Resource>,
    pub(super) rejected: Vec<Rejected>,
    pub(super) salvaged: Vec<Resource>,
    pub(super) problems: Vec<Problem>,
    /// The file as it is now cannot be read.
    pub(super) unreadable: bool,
    /// It has been readable before.
    pub(super) held: bool,
    /// [`super::Parsed::mentions`] of its last version without a mistake that hides an object.
    pub(super) mentions: usize,
    /// See [`super::Store::suspects`].
    pub(super) suspect: bool,
}

impl FileState {
    /// Whether there is nothing to say of it.
    pub(super) fn is_good(&self) -> bool {
        let said = self.problems.is_empty() && self.rejected.is_empty();
        said && self.salvaged.is_empty() && !self.unreadable && !self.suspect
    }
}

/// A file as it is kept.
#[derive(Debug)]
pub(super) enum File {
    /// Good throughout, with one object.
    One {
        key: ObjectKey,
        resource: Resource,
        /// [`FileState::mentions`].
        mentions: usize,
    },
    /// Any other.
    Any(Box<FileState>),
}

impl From<FileState> for File {
    fn from(mut state: FileState) -> Self {
        if state.objects.len() == 1
            && state.held
            && state.is_good()
            && let Some((key, resource)) = state.objects.drain().next()
        {
            return Self::One { key, resource, mentions: state.mentions };
        }
        Self::Any(Box::new(state))
    }
}

impl From<File> for FileState {
    fn from(file: File) -> Self {
        match file {
            File::One { key, resource, mentions } => Self {
                objects: HashMap::from([(key, resource)]),
                held: true,
                mentions,
                ..Self::default()
            },
            File::Any(state) => *state,
        }
    }
}

impl File {
    /// An object of the file.
    pub(super) fn get(&self, wanted: &ObjectKey) -> Option<&Resource> {
        match self {
            Self::One { key, resource, .. } => (key == wanted).then_some(resource),
            Self::Any(state) => state.objects.get(wanted),
        }
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, wanted: &ObjectKey) -> Option<&mut Resource> {
        match self {
            Self::One { key, resource, .. } => (key == wanted).then_some(resource),
            Self::Any(state) => state.objects.get_mut(wanted),
        }
    }

    /// The state of a file of which there is anything to say; `None` for most.
    pub(super) fn flawed(&self) -> Option<&FileState> {
        match self {
            Self::One { .. } => None,
            Self::Any(state) => Some(state),
        }
    }

    /// The same, to be changed.
    pub(super) fn flawed_mut(&mut self) -> Option<&mut FileState> {
        match self {
            Self::One { .. } => None,
            Self::Any(state) => Some(state),
        }
    }

    /// What is wrong in it.
    pub(super) fn problems(&self) -> &[Problem] {
        self.flawed().map_or(&[], |state| &state.problems)
    }
}

/// Every object, with the files that hold it as they came, of which the first counts.
#[derive(Debug, Default)]
pub(super) struct Objects {
    known: HashMap<ObjectKey, Entry>,
    /// The files after the first, of the few objects that several hold.
    others: BTreeMap<ObjectKey, Vec<Arc<PathBuf>>>,
    /// How many there are.
    count: usize,
}

/// One of the two is there at least.
#[derive(Debug, Default)]
struct Entry {
    /// The first file.
    file: Option<Arc<PathBuf>>,
    /// The version that counts.
    object: Option<Resource>,
}

impl Objects {
    /// The version that counts.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Resource> {
        self.known.get(key)?.object.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut Resource> {
        self.known.get_mut(key)?.object.as_mut()
    }

    /// The key as it is kept here.
    pub(super) fn key(&self, key: &ObjectKey) -> Option<&ObjectKey> {
        self.known.get_key_value(key).map(|(key, _)| key)
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Resource)> {
        self.known.iter().filter_map(|(key, entry)| Some((key, entry.object.as_ref()?)))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Sets the version that counts.
    pub(super) fn insert(&mut self, key: &ObjectKey, object: Resource) {
        let before = match self.known.get_mut(key) {
            Some(entry) => entry.object.replace(object).is_some(),
            None => {
                self.known.insert(key.clone(), Entry { file: None, object: Some(object) });
                false
            }
        };
        self.count += usize::from(!before);
    }

    /// No version counts any more; whether one did.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> bool {
        let removed = self.known.get_mut(key).is_some_and(|entry| entry.object.take().is_some());
        self.count -= usize::from(removed);
        self.tidy(key);
        removed
    }

    /// The file whose version counts.
    pub(super) fn first(&self, key: &ObjectKey) -> Option<&Arc<PathBuf>> {
        self.known.get(key)?.file.as_ref()
    }

    /// The files whose versions are in vain.
    pub(super) fn others(&self, key: &ObjectKey) -> &[Arc<PathBuf>] {
        self.others.get(key).map_or(&[], Vec::as_slice)
    }

    /// The objects that several files hold.
    pub(super) fn shared(&self) -> impl Iterator<Item = &ObjectKey> {
        self.others.keys()
    }

    /// The file holds the object.
    pub(super) fn enter(&mut self, key: &ObjectKey, file: &Arc<PathBuf>) {
        let Some(entry) = self.known.get_mut(key) else {
            let entry = Entry { file: Some(Arc::clone(file)), object: None };
            self.known.insert(key.clone(), entry);
            return;
        };
        match &entry.file {
            None => entry.file = Some(Arc::clone(file)),
            Some(first) if first == file => {}
            Some(_) => {
                let others = self.others.entry(key.clone()).or_default();
                if !others.contains(file) {
                    others.push(Arc::clone(file));
                }
            }
        }
    }

    /// The file no longer holds the object.
    pub(super) fn leave(&mut self, key: &ObjectKey, file: &Arc<PathBuf>) {
        let Some(entry) = self.known.get_mut(key) else { return };
        let is_first = entry.file.as_ref() == Some(file);
        if is_first {
            entry.file = None;
        }
        if let Some(others) = self.others.get_mut(key) {
            if is_first {
                entry.file = Some(others.remove(0));
            } else {
                others.retain(|other| other != file);
            }
            if others.is_empty() {
                self.others.remove(key);
            }
        }
        self.tidy(key);
    }

    fn tidy(&mut self, key: &ObjectKey) {
        if self.known.get(key).is_some_and(|e| e.file.is_none() && e.object.is_none()) {
            self.known.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_api::Kind;

    use super::*;

    #[test]
    fn the_first_that_came_counts_until_it_goes() {
        let key = ObjectKey::new(Kind::Pod, "default", "a");
        let files = ["b", "a", "c"].map(|name| Arc::new(PathBuf::from(name)));
        let mut holders = Objects::default();
        for file in files.iter().chain(&files) {
            holders.enter(&key, file);
        }
        assert_eq!((holders.first(&key), holders.others(&key)), (Some(&files[0]), &files[1..]));
        assert!(holders.shared().eq([&key]));
        holders.leave(&key, &files[0]);
        holders.leave(&key, &files[0]);
        assert_eq!((holders.first(&key), holders.others(&key)), (Some(&files[1]), &files[2..]));
        holders.leave(&key, &files[2]);
        assert_eq!((holders.first(&key), holders.shared().count()), (Some(&files[1]), 0));
        holders.leave(&key, &files[1]);
        assert_eq!((holders.first(&key), holders.others(&key).len()), (None, 0));
        assert!(holders.known.is_empty());
        // What counts is another question.
        let pod = Resource::from(fairlead_api::core::Pod::default());
        holders.insert(&key, pod.clone());
        holders.insert(&key, pod.clone());
        assert_eq!((holders.len(), holders.get(&key), holders.first(&key)), (1, Some(&pod), None));
        holders.enter(&key, &files[0]);
        holders.leave(&key, &files[0]);
        assert!(holders.iter().eq([(&key, &pod)]));
        assert!(holders.remove(&key) && !holders.remove(&key));
        assert_eq!((holders.len(), holders.known.len()), (0, 0));
    }

    #[test]
    fn the_small_form_holds_what_the_large_one_does() {
        assert!(size_of::<File>() <= 64, "{}", size_of::<File>());
        let pod = Resource::from(fairlead_api::core::Pod::default());
        let key = pod.key();
        let good = |mentions| FileState {
            objects: HashMap::from([(key.clone(), pod.clone())]),
            held: true,
            mentions,
            ..FileState::default()
        };
        let file = File::from(good(3));
        assert!(matches!(file, File::One { .. }) && file.get(&key) == Some(&pod));
        assert!(file.get(&ObjectKey::new(Kind::Pod, "", "other")).is_none());
        let back = FileState::from(file);
        assert_eq!((back.mentions, back.held, back.objects.get(&key)), (3, true, Some(&pod)));
        for flawed in [
            FileState { unreadable: true, ..good(0) },
            FileState { suspect: true, ..good(0) },
            FileState { held: false, ..good(0) },
            FileState { objects: HashMap::new(), ..good(0) },
        ] {
            let (suspect, unreadable, held) = (flawed.suspect, flawed.unreadable, flawed.held);
            let file = File::from(flawed);
            assert!(matches!(file, File::Any(_)));
            let back = FileState::from(file);
            assert_eq!((back.suspect, back.unreadable, back.held), (suspect, unreadable, held));
        }
    }
}
