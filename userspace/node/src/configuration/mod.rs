//! Configuration from the directory to the snapshot: load, compile, publish, follow.
//!
//! It lives on the watcher's own thread. What is wrong is logged when it is news, kept for
//! `/problems`, and never stops what is right.

mod report;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use fairlead_api::{Kind, ObjectKey, Resource};
use fairlead_config::SnapshotHandle;
use fairlead_config::compile::{Compiler, CompilerSettings, FailClosed, Update};
use fairlead_config::source::{Change, Loader, Store, Watcher};
use fairlead_types::Labels;
use parking_lot::Mutex;

pub use report::{Entry, Report, refused};

use crate::supervise::Supervisor;

/// The node's configuration. Dropping it ends the watcher; the last snapshot stays.
pub struct Configuration {
    snapshots: SnapshotHandle,
    report: Arc<Mutex<Report>>,
    watcher: Watcher,
}

impl Configuration {
    /// Loads the directory, and follows it from then on.
    ///
    /// # Errors
    /// The kernel does not let it be watched. What is wrong with its contents, or that it is not
    /// there, is no error: it is in the report.
    pub fn start(dir: &Path, node: &str, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let mut loader = Loader::new([dir]);
        let mut store = Store::default();
        let first = store.apply(loader.scan());
        let report = Arc::new(Mutex::new(Report::default()));
        let compiler = Compiler::new(CompilerSettings::new(node));
        let root = Arc::clone(&compiler.snapshot().mesh.root_namespace);
        let snapshots = SnapshotHandle::new(Arc::clone(compiler.snapshot()));
        let mut follower = Follower {
            compiler,
            snapshots: snapshots.clone(),
            report: Arc::clone(&report),
            unlisted: store.unlisted().iter().map(|p| Arc::clone(&p.file)).collect(),
            suspects: BTreeSet::new(),
            settings_namespace: Arc::clone(&root),
            root,
        };
        follower.apply(&store, &first);
        let supervisor = supervisor.clone();
        let watcher = Watcher::spawn(loader, store, move |store, change| {
            supervisor.watch("config-watch", || follower.apply(store, change));
        })
        .with_context(|| format!("watching {}", dir.display()))?;
        Ok(Self { snapshots, report, watcher })
    }

    /// Where the current snapshot is.
    #[must_use]
    pub fn snapshots(&self) -> &SnapshotHandle {
        &self.snapshots
    }

    /// What is wrong now, and how loading went. Shared.
    #[must_use]
    pub fn report(&self) -> Arc<Mutex<Report>> {
        Arc::clone(&self.report)
    }

    /// Looks at every file again now.
    pub fn reread(&self) {
        self.watcher.reread();
    }
}

/// Turns changes of the store into snapshots.
struct Follower {
    compiler: Compiler,
    snapshots: SnapshotHandle,
    report: Arc<Mutex<Report>>,
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
    fn apply(&mut self, store: &Store, change: &Change) {
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
        if snapshot.mesh.root_namespace != self.root {
            // The scope of "the whole mesh" has another name now.
            self.root = Arc::clone(&snapshot.mesh.root_namespace);
            let closed = self.fail_closed(store);
            let update = Update { objects: &[], fail_closed: Some(&closed) };
            let (again, more, _) = self.compiler.apply(&update);
            snapshot = again;
            fresh.extend(more);
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
        let complete = problems.iter().all(|p| !p.is_error());
        let entries = problems
            .iter()
            .map(Entry::from)
            .chain(self.compiler.problems().iter().map(Entry::from))
            .chain(self.suspects.iter().map(|file| Entry::suspect(file)))
            .collect();
        let mut report = self.report.lock();
        report.loaded(version, store.len(), stats.elapsed, complete, entries);
        tracing::info!(
            version,
            objects = objects.len(),
            total = store.len(),
            micros = stats.elapsed.as_micros(),
            problems = report.entries.len(),
            "configuration applied"
        );
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

#[cfg(test)]
mod tests;
