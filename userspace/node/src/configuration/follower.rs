//! From the store to the snapshot: compile what changed, publish, report. The same for every
//! source.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey, Resource};
use fairlead_config::SnapshotHandle;
use fairlead_config::compile::{Compiler, CompilerSettings, FailClosed, Problem, Update};
use fairlead_config::source::{self, Change, Effect, ObjectRef, Store};
use fairlead_types::Labels;
use parking_lot::Mutex;

use super::report::{Entry, Report};

/// What a "file" of the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A file, which may hold anything.
    Files,
    /// One object that is known by its key.
    Objects,
}

/// Turns changes of the store into snapshots.
pub(super) struct Follower {
    compiler: Compiler,
    snapshots: SnapshotHandle,
    report: Arc<Mutex<Report>>,
    form: Form,
    /// Paths that have not been readable since the start.
    unlisted: BTreeSet<Arc<PathBuf>>,
    /// Paths that may hold security policies of which nobody knows anything: until they can be
    /// read, everything that an authorization policy could forbid is refused.
    suspects: BTreeSet<Arc<PathBuf>>,
    /// The namespace of policies for the whole mesh.
    root: Arc<str>,
    /// The namespace in which the mesh's settings are looked for.
    settings_namespace: Arc<str>,
}

impl Follower {
    /// A follower whose snapshot is empty, and where that is.
    pub(super) fn new(node: &str, form: Form) -> Self {
        Self::compiling(CompilerSettings::new(node), form)
    }

    fn compiling(settings: CompilerSettings, form: Form) -> Self {
        let compiler = Compiler::new(settings);
        let root = Arc::clone(&compiler.snapshot().mesh.root_namespace);
        let snapshots = SnapshotHandle::new(Arc::clone(compiler.snapshot()));
        Self {
            compiler,
            snapshots,
            report: Arc::default(),
            form,
            unlisted: BTreeSet::new(),
            suspects: BTreeSet::new(),
            settings_namespace: Arc::clone(&root),
            root,
        }
    }

    /// The same, with the mesh's settings and policies in this namespace.
    pub(super) fn with_root(node: &str, form: Form, root_namespace: &str) -> Self {
        let mut settings = CompilerSettings::new(node);
        root_namespace.clone_into(&mut settings.mesh.root_namespace);
        Self::compiling(settings, form)
    }

    pub(super) fn snapshots(&self) -> &SnapshotHandle {
        &self.snapshots
    }

    pub(super) fn report(&self) -> &Arc<Mutex<Report>> {
        &self.report
    }

    /// Paths that could never be listed, of a source that has such.
    pub(super) fn unlisted(&mut self, paths: impl Iterator<Item = Arc<PathBuf>>) {
        self.unlisted = paths.collect();
    }

    /// The errors that the compiler finds now in the objects that `of` picks.
    pub(super) fn errors(
        &self,
        of: impl Fn(&ObjectKey) -> bool,
    ) -> BTreeMap<ObjectKey, Vec<Problem>> {
        self.compiler.errors(of)
    }

    /// Takes in a change of the store; of which objects the compiler thinks otherwise now, also
    /// such as have not changed.
    pub(super) fn apply(&mut self, store: &Store, change: &Change) -> HashSet<ObjectKey> {
        let objects: Vec<(ObjectKey, Option<Resource>)> = change
            .upserted
            .iter()
            .map(|key| (key.clone(), store.get(key).cloned()))
            .chain(change.removed.iter().map(|key| (key.clone(), None)))
            .collect();
        let first = self.report.lock().loads == 0;
        let suspects_changed = self.look_for_suspects(store);
        let closed =
            (first || change.rejected_changed || suspects_changed).then(|| self.fail_closed(store));
        let update = Update { objects: &objects, fail_closed: closed.as_deref() };
        let (mut snapshot, mut fresh, stats) = self.compiler.apply(&update);
        let mut rejudged: HashSet<ObjectKey> = self.compiler.rejudged().cloned().collect();
        if snapshot.mesh.root_namespace != self.root {
            // The scope of "the whole mesh" has another name now.
            self.root = Arc::clone(&snapshot.mesh.root_namespace);
            let closed = self.fail_closed(store);
            let update = Update { objects: &[], fail_closed: Some(&closed) };
            let (again, more, _) = self.compiler.apply(&update);
            snapshot = again;
            fresh.extend(more);
            rejudged.extend(self.compiler.rejudged().cloned());
        }

        for problem in &change.problems {
            if problem.is_error() {
                tracing::error!("{problem}");
            } else {
                tracing::warn!("{problem}");
            }
        }
        for problem in &fresh {
            tracing::warn!("{problem}");
        }
        let version = snapshot.version;
        if self.snapshots.with(|s| s.version) != version || first {
            self.snapshots.publish(snapshot);
        }
        let problems = store.problems();
        let complete = match self.form {
            Form::Files => problems.iter().all(|p| !p.is_error()),
            // Each object is known by its key: a route that is refused hides no pod.
            Form::Objects => {
                !store.rejected().keys().any(|k| matches!(k.kind, Kind::Pod | Kind::Namespace))
            }
        };
        let compiled = self.compiler.problems();
        // What was told in advance is told once, now that traffic is refused for it.
        let come_true: HashSet<(&ObjectKey, &str)> =
            compiled.iter().map(|problem| (&problem.object, problem.field.as_str())).collect();
        let advance = |problem: &&source::Problem| {
            let key = problem.object.as_ref().and_then(ObjectRef::key);
            problem.effect != Effect::Refused
                || key.is_none_or(|key| !come_true.contains(&(&key, problem.field.as_str())))
        };
        let entries = problems
            .iter()
            .filter(advance)
            .map(Entry::from)
            .chain(compiled.iter().map(Entry::from))
            .chain(self.suspects.iter().map(|file| Entry::suspect(file)))
            .collect();
        let mut report = self.report.lock();
        // A directory is its own source; a controller's word is marked where it comes in.
        report.current |= self.form == Form::Files;
        report.loaded(version, store.len(), stats.elapsed, complete, entries);
        report.unenrolled = store.unenrolled().map(ToString::to_string).collect();
        let found = report.entries.len();
        drop(report);
        if first && self.form == Form::Objects {
            // Whoever waits for the first configuration looks at the report.
            self.snapshots.publish(self.snapshots.load());
        }
        let (changed, micros) = (objects.len(), stats.elapsed.as_micros());
        let (total, problems) = (store.len(), found);
        // A cluster changes all the time, a directory when somebody saves a file.
        if first || self.form == Form::Files {
            tracing::info!(version, changed, total, micros, problems, "configuration applied");
        } else {
            tracing::debug!(version, changed, total, micros, problems, "configuration applied");
        }
        rejudged
    }

    /// Whether there are others than before.
    fn look_for_suspects(&mut self, store: &Store) -> bool {
        let unlisted: HashSet<_> = store.unlisted().iter().map(|p| &p.file).collect();
        self.unlisted.retain(|path| unlisted.contains(path));
        let suspects = store.suspects().chain(&self.unlisted).cloned().collect();
        let changed = suspects != self.suspects;
        self.suspects = suspects;
        changed
    }

    fn fail_closed(&self, store: &Store) -> Vec<FailClosed> {
        // A policy of the root namespace without selector is one for the whole mesh.
        let whole_mesh = |why: &str| FailClosed {
            key: ObjectKey::new(Kind::AuthorizationPolicy, &self.root, why),
            selector: Labels::default(),
        };
        let refused = store.fail_closed().filter_map(|(key, refused)| {
            if key.kind != Kind::ConfigMap {
                let labels = refused.selector.iter().map(|(k, v)| (k.as_str(), v.as_str()));
                return Some(FailClosed { key: key.clone(), selector: labels.collect() });
            }
            let counts = *key.namespace == *self.settings_namespace;
            counts.then(|| whole_mesh("mesh-settings-refused"))
        });
        let suspected =
            self.suspects.iter().map(|file| whole_mesh(&format!("unreadable:{}", file.display())));
        refused.chain(suspected).collect()
    }
}
