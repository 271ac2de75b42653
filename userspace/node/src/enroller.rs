//! The thread that keeps enrolment in step, and how it begins: alone, or as the successor of a
//! daemon that still serves.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use fairlead_capture::Capture;
use fairlead_config::{SnapshotHandle, Subscription};
use fairlead_identity::IdentityStore;
use fairlead_proxy::DataPlane;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::cni::{self, Answers, Assigned};
use crate::configuration::Report;
use crate::discovery::Locator;
use crate::enrolment::{Enrolment, Surroundings, Table};
use crate::handover::{Met, Successor, TAKE_PATIENCE};
use crate::settings::{Settings, UnknownNetns};
use crate::supervise::Supervisor;

/// How long a successor waits for certificates before it takes pods over without them: those that
/// have none yet get it while their first connections wait.
const CERTIFICATES: Duration = Duration::from_secs(10);
/// How long a successor looks for pods that its predecessor serves. What it has not found by then is
/// refused until it is.
const TAKE_OVER: Duration = Duration::from_secs(20);
/// How long a successor may take for all pods; then it stops, before it is called off
/// ([`TAKE_PATIENCE`]).
const GIVE_UP: Duration = Duration::from_secs(45);
const _: () = assert!(TAKE_OVER.as_secs() < GIVE_UP.as_secs());
const _: () = assert!(GIVE_UP.as_secs() + 10 <= TAKE_PATIENCE.as_secs());
/// How long a successor waits for the controller's word before it takes pods over by what was kept
/// on disk. Its predecessor serves until then, and may have pods that were not kept yet.
const CURRENT: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// What enrolment is made of; it may have to begin again, when a successor did not come about.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) capture: Arc<Capture>,
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) identity: Arc<IdentityStore>,
    pub(crate) control: Handle,
    pub(crate) locator: Option<Arc<Locator>>,
    pub(crate) assigned: Option<Arc<Assigned>>,
    pub(crate) snapshots: SnapshotHandle,
    pub(crate) report: Arc<Mutex<Report>>,
    pub(crate) table: Table,
    pub(crate) supervisor: Supervisor,
}

impl Parts {
    fn surroundings(&self) -> Surroundings {
        let (report, current) = (Arc::clone(&self.report), Arc::clone(&self.report));
        let (identity, control) = (Arc::clone(&self.identity), self.control.clone());
        Surroundings {
            snapshots: self.snapshots.clone(),
            captor: Arc::<Capture>::clone(&self.capture),
            carrier: Arc::<DataPlane>::clone(&self.plane),
            retain: Box::new(move |ids| {
                // Certificates are asked for on the control runtime.
                let _within = control.enter();
                identity.retain(ids);
            }),
            complete: Box::new(move || report.lock().complete),
            current: Box::new(move || current.lock().current),
            refuse_unknown: self.refuse_unknown(),
            locator: self.locator.clone(),
            assigned: self.assigned.clone(),
        }
    }

    fn refuse_unknown(&self) -> bool {
        self.settings.capture.unknown_netns == UnknownNetns::Refuse
    }

    /// Starts the thread. `first` is called when the pods of the first configuration are
    /// enrolled, and a predecessor has let go.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub(crate) fn start(
        &self,
        met: Met,
        first: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Enroller> {
        // One waiting message stands for all changes: the thread looks at the newest snapshot.
        let (changed, told) = sync_channel(1);
        let changed = Arc::new(changed);
        let tell = SyncSender::clone(&changed);
        let subscription = self.snapshots.subscribe(move |_| {
            let _ = tell.try_send(());
        });
        let enrolment = Enrolment::new(self.surroundings()).with_table(Arc::clone(&self.table));
        let passes = enrolment.passes();
        let report = Arc::clone(&self.report);
        let (successor, mut predecessor) = match met {
            Met::Nobody => (None, None),
            Met::Vacant(predecessor) => (None, Some(predecessor)),
            Met::Serving(successor) => (Some(successor), None),
        };
        let taking = successor.map(|successor| Taking {
            successor,
            report: Arc::clone(&self.report),
            snapshots: self.snapshots.clone(),
            identity: Arc::clone(&self.identity),
            control: self.control.clone(),
            capture: Arc::clone(&self.capture),
            plane: Arc::clone(&self.plane),
            assigned: self.assigned.clone(),
        });
        let supervisor = self.supervisor.clone();
        let thread = self
            .supervisor
            .thread("enrolment", move || {
                // Without any configuration there is nobody to enrol, and to say so would be wrong.
                while report.lock().loads == 0 {
                    if told.recv().is_err() {
                        return;
                    }
                }
                let mut enrolment = enrolment;
                if let Some(taking) = taking {
                    match taking.run(&mut enrolment, &told) {
                        Ok(Some(line)) => predecessor = Some(line),
                        // No pod may be touched any more.
                        Ok(None) => return,
                        Err(error) => {
                            supervisor.end("handover", format!("{error:#}"));
                            return;
                        }
                    }
                }
                enrolment.run(&told, first);
                // Who served before may be waiting for this daemon's end.
                drop(predecessor);
            })
            .context("starting the enrolment thread")?;
        Ok(Enroller { changed, passes, plugins: None, _subscription: subscription, thread })
    }

    /// Serves CNI plugins for as long as `enroller` lives.
    ///
    /// # Errors
    /// Their socket cannot be made.
    pub(crate) fn serve_plugins(&self, enroller: &mut Enroller) -> anyhow::Result<()> {
        let (Some(pods), Some(locator), Some(assigned)) =
            (&self.settings.pods, &self.locator, &self.assigned)
        else {
            return Ok(());
        };
        let answers = Answers {
            locator: Arc::clone(locator),
            assigned: Arc::clone(assigned),
            snapshots: self.snapshots.clone(),
            table: Arc::clone(&self.table),
            passes: enroller.passes.clone(),
            refuse_unknown: self.refuse_unknown(),
            identity: Arc::clone(&self.identity),
            wake: enroller.wake(),
        };
        let server = {
            let _within = self.control.enter();
            cni::Server::bind(&pods.cni_socket)?
        };
        tracing::info!(socket = %pods.cni_socket.display(), "CNI plugins");
        let plugins = self.supervisor.task(&self.control, "cni", server.serve(answers));
        enroller.plugins = Some(plugins);
        Ok(())
    }
}

/// What a successor does before it enrols like any other daemon.
struct Taking {
    successor: Successor,
    report: Arc<Mutex<Report>>,
    snapshots: SnapshotHandle,
    identity: Arc<IdentityStore>,
    control: Handle,
    capture: Arc<Capture>,
    plane: Arc<DataPlane>,
    assigned: Option<Arc<Assigned>>,
}

impl Taking {
    /// Takes over; the line to the predecessor. `None`: this daemon ends.
    fn run(
        mut self,
        enrolment: &mut Enrolment,
        told: &Receiver<()>,
    ) -> anyhow::Result<Option<Successor>> {
        let begun = Instant::now();
        while !self.report.lock().current && begun.elapsed() < CURRENT {
            if told.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
                return Ok(None);
            }
        }
        self.certificates();
        self.successor.take()?;
        if let Some(assigned) = &self.assigned {
            // The daemon before has heard of pods until now.
            assigned.reload();
        }
        let started = Instant::now();
        self.plane.hold();
        let pass = |now, may_go_on: &mut dyn FnMut() -> bool| {
            let next = enrolment.pass_while(now, may_go_on);
            // Whoever is not found at once is not waited for.
            self.plane.serve();
            next
        };
        let left = || Ok(self.capture.leftovers()?.len());
        if !take_pods(&mut self.successor, (TAKE_OVER, GIVE_UP), pass, left, told)? {
            return Ok(None);
        }
        self.successor.taken()?;
        self.capture.take_hold()?;
        tracing::info!(took = ?started.elapsed(), "all pods are taken over");
        Ok(Some(self.successor))
    }

    /// Has the certificates of the node's pods, so that their first connections do not wait.
    fn certificates(&self) {
        let snapshot = self.snapshots.load();
        let ids: HashSet<_> = snapshot
            .local
            .values()
            .filter(|pod| pod.workload.enrolled)
            .map(|pod| pod.workload.identity.clone())
            .collect();
        let all = async {
            self.identity.retain(&ids);
            for id in &ids {
                // What is missing is told by those who need it.
                let _ = self.identity.certificate_within(id, CERTIFICATES).await;
            }
        };
        let _ = self.control.block_on(async { tokio::time::timeout(CERTIFICATES, all).await });
    }
}

/// Has `pass` take pods until none is `left` with the predecessor, or those that are cannot be found
/// within the first time. `false`: this daemon ends.
///
/// # Errors
/// The predecessor has taken its pods back, or is about to as the second time is over: nothing is
/// touched any more.
fn take_pods(
    line: &mut Successor,
    (look, give_up): (Duration, Duration),
    mut pass: impl FnMut(Instant, &mut dyn FnMut() -> bool) -> Instant,
    left: impl Fn() -> anyhow::Result<usize>,
    told: &Receiver<()>,
) -> anyhow::Result<bool> {
    let started = Instant::now();
    loop {
        let now = Instant::now();
        let next = pass(now, &mut || started.elapsed() < give_up && line.may_go_on());
        if !line.may_go_on() {
            bail!("the daemon that serves this node has taken its pods back");
        }
        let left = left()?;
        if left == 0 {
            return Ok(true);
        }
        ensure!(
            started.elapsed() < give_up,
            "{left} pods could not be taken over within {give_up:?}; the daemon that serves this \
             node takes all of them back"
        );
        if started.elapsed() > look {
            tracing::warn!(
                pods = left,
                "pods that the daemon before served cannot be found; they are refused until they \
                 are"
            );
            return Ok(true);
        }
        let wait = next.saturating_duration_since(now).min(LOOK);
        if told.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return Ok(false);
        }
    }
}

/// Enrolment, and what ends it when dropped.
pub(crate) struct Enroller {
    changed: Arc<SyncSender<()>>,
    passes: watch::Receiver<u64>,
    plugins: Option<AbortHandle>,
    _subscription: Subscription,
    thread: std::thread::JoinHandle<()>,
}

impl Enroller {
    /// Has the thread look again, for as long as it lives.
    fn wake(&self) -> Arc<dyn Fn() + Send + Sync> {
        let changed = Arc::downgrade(&self.changed);
        Arc::new(move || {
            if let Some(changed) = changed.upgrade() {
                let _ = changed.try_send(());
            }
        })
    }

    /// No pod joins or leaves any more. Plugins wait for the next daemon's socket.
    pub(crate) fn stop(self) {
        let Self { changed, passes: _, plugins, _subscription: subscription, thread } = self;
        if let Some(plugins) = plugins {
            plugins.abort();
        }
        drop((subscription, changed));
        let _ = thread.join();
    }
}

#[cfg(test)]
#[path = "enroller_tests.rs"]
mod tests;
