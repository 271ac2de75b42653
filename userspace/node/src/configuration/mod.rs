//! Configuration from its source to the snapshot: load, compile, publish, follow.
//!
//! Two sources, one compiler: a directory of YAML, followed on the watcher's own thread, and a
//! [`controller`] that streams objects. What is wrong is logged when it is news, kept for
//! `/problems`, and never stops what is right.

pub mod controller;
mod follower;
mod report;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use fairlead_config::SnapshotHandle;
use fairlead_config::source::{Loader, Store, Watcher};
use parking_lot::Mutex;

pub use report::{Entry, Report, refused};

use crate::cni::Assigned;
use crate::settings::ControllerSettings;
use crate::supervise::Supervisor;
use controller::Controller;
use follower::{Follower, Form};

/// The node's configuration. Dropping it ends what follows the source; the last snapshot stays.
pub struct Configuration {
    snapshots: SnapshotHandle,
    report: Arc<Mutex<Report>>,
    source: Source,
}

enum Source {
    Directory(Watcher),
    Controller(Controller),
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
        let mut follower = Follower::new(node, Form::Files);
        follower.unlisted(store.unlisted().iter().map(|p| Arc::clone(&p.file)));
        follower.apply(&store, &first);
        let snapshots = follower.snapshots().clone();
        let report = Arc::clone(follower.report());
        let supervisor = supervisor.clone();
        let watcher = Watcher::spawn(loader, store, move |store, change| {
            supervisor.watch("config-watch", || {
                follower.apply(store, change);
            });
        })
        .with_context(|| format!("watching {}", dir.display()))?;
        Ok(Self { snapshots, report, source: Source::Directory(watcher) })
    }

    /// Begins with what was kept of an earlier daemon, and follows the controller from then on,
    /// which is told of the addresses that pods are given.
    ///
    /// # Errors
    /// The state directory cannot be used, or the kernel gives no thread. That no controller
    /// answers is no error.
    pub fn follow(
        settings: &ControllerSettings,
        node: &str,
        assigned: Option<&Arc<Assigned>>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Self> {
        let follower = Follower::with_root(node, Form::Objects, &settings.root_namespace);
        let snapshots = follower.snapshots().clone();
        let report = Arc::clone(follower.report());
        let controller =
            Controller::start(settings, node, follower, assigned.cloned(), supervisor)?;
        Ok(Self { snapshots, report, source: Source::Controller(controller) })
    }

    /// The controller, if configuration comes from one.
    #[must_use]
    pub fn controller(&self) -> Option<&Controller> {
        match &self.source {
            Source::Directory(_) => None,
            Source::Controller(controller) => Some(controller),
        }
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

    /// Leaves what is kept on disk to another daemon.
    pub async fn let_state_go(&self) {
        if let Source::Controller(controller) = &self.source {
            controller.let_state_go().await;
        }
    }

    /// The reverse of [`Configuration::let_state_go`].
    pub async fn take_state_up(&self) {
        if let Source::Controller(controller) = &self.source {
            controller.take_state_up().await;
        }
    }

    /// Looks at every file again now, or at the controller's address.
    pub fn reread(&self) {
        match &self.source {
            Source::Directory(watcher) => watcher.reread(),
            Source::Controller(controller) => controller.reconnect(),
        }
    }
}

#[cfg(test)]
mod tests;
