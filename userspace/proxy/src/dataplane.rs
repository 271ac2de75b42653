//! The data plane as the daemon sees it: pods come and go, connections are listed, and at the end
//! everything is drained.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fairlead_config::model::LocalPod;
use fairlead_config::{SnapshotHandle, Subscription};
use fairlead_telemetry::Telemetry;
use fairlead_types::{PodSockets, WorkloadId};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::housekeeping::keep_doing;
use crate::live::{ConnectionInfo, Cut};
use crate::state::{Pod, Shared};
use crate::transport::Transport;
use crate::unknown::UnknownDestinations;
use crate::{accept, inbound, outbound, reach};

/// How often metrics of long connections are brought up to date, and idle HTTP connections are
/// looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long connections that were cut get to say so.
const FORCED: Duration = Duration::from_millis(500);
/// How long the listeners of a pod that is replaced go on beside those that replace them: clients may
/// be half-way to them, and would be reset.
pub(crate) const REPLACED: Duration = Duration::from_secs(2);

/// Bounds of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections of the node at the same time; one more is refused (`OVERLOAD`).
    pub connections: usize,
    /// Connections of one pod.
    pub connections_per_pod: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { connections: 250_000, connections_per_pod: 50_000 }
    }
}

/// What a data plane needs.
pub struct Deps {
    /// Where the current configuration is.
    pub snapshots: SnapshotHandle,
    /// Sessions to other nodes.
    pub transport: Arc<Transport>,
    /// Metrics and access log.
    pub telemetry: Arc<Telemetry>,
    /// Bounds.
    pub settings: Settings,
}

/// The data plane of one node. Dropping it ends its accept loops and housekeeping; connections
/// that are open go on.
pub struct DataPlane {
    pub(crate) shared: Arc<Shared>,
    /// Pods that are served no more, as long as connections of theirs go on.
    parted: Parted,
    runtime: Handle,
    housekeeping: [JoinHandle<()>; 2],
    _subscription: Subscription,
}

type Parted = Arc<Mutex<Vec<Weak<Pod>>>>;

impl DataPlane {
    /// A data plane without pods. Has to be called within the tokio runtime that is to carry it.
    #[must_use]
    pub fn new(deps: Deps) -> Self {
        let Deps { snapshots, transport, telemetry, settings } = deps;
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let subscription = snapshots.subscribe(move |_| notify.notify_one());
        let shared = Arc::new(Shared::new(snapshots, transport, telemetry, settings));
        let (following, sweeping) = (Arc::clone(&shared), Arc::clone(&shared));
        let parted = Parted::default();
        let sweeping_parted = Arc::clone(&parted);
        let housekeeping = [
            tokio::spawn(keep_doing("following policy", move || {
                // Also when it is begun anew: a change may have gone by meanwhile.
                changed.notify_one();
                follow_policy(Arc::clone(&following), Arc::clone(&changed))
            })),
            tokio::spawn(keep_doing("sweeping", move || {
                sweep(Arc::clone(&sweeping), Arc::clone(&sweeping_parted))
            })),
        ];
        Self {
            shared,
            parted,
            runtime: Handle::current(),
            housekeeping,
            _subscription: subscription,
        }
    }

    /// Has `who` asked about destinations that the snapshot does not know. Counts once, at the
    /// start.
    pub fn ask_about_unknown(&self, who: Arc<dyn UnknownDestinations>) {
        let _ = self.shared.unknown.set(who);
    }

    /// Takes over the listeners of a pod. A pod of the same name that was added before is
    /// replaced: its accept loops end soon.
    ///
    /// # Errors
    /// A listener could not be registered with the event loop.
    pub fn add_pod(&self, local: Arc<LocalPod>, sockets: PodSockets) -> io::Result<()> {
        let _context = self.runtime.enter();
        let listeners = |sockets: Vec<std::net::TcpListener>| {
            sockets
                .into_iter()
                .map(|socket| {
                    socket.set_nonblocking(true)?;
                    TcpListener::from_std(socket)
                })
                .collect::<io::Result<Vec<_>>>()
        };
        let (from_pod, to_pod) = (listeners(sockets.outbound)?, listeners(sockets.inbound)?);
        let pod = Arc::new(Pod::new(&local, sockets.port, &sockets.ips, sockets.given));
        if let Some(replaced) = self.shared.insert(Arc::clone(&pod)) {
            self.part(&replaced);
            self.runtime.spawn(async move {
                tokio::time::sleep(REPLACED).await;
                replaced.stop.send_replace(true);
            });
        }
        for listener in from_pod {
            let (shared, pod) = (Arc::clone(&self.shared), Arc::clone(&pod));
            let stop = pod.stop.subscribe();
            self.accept(accept::run(listener, stop, move |tcp, peer| {
                let coming = shared.live.coming();
                tokio::spawn(outbound::serve(shared.clone(), pod.clone(), tcp, peer, coming));
            }));
        }
        for listener in to_pod {
            let (shared, pod) = (Arc::clone(&self.shared), Arc::clone(&pod));
            let stop = pod.stop.subscribe();
            self.accept(accept::run(listener, stop, move |tcp, peer| {
                if shared.walks.meets(&tcp, peer) {
                    return; // This node asks whether there is a way, and nothing else.
                }
                let coming = shared.live.coming();
                tokio::spawn(inbound::serve(shared.clone(), pod.clone(), tcp, coming));
            }));
        }
        Ok(())
    }

    fn accept(&self, run: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            let mut accepting = shared.accepting.subscribe();
            // The sender is there as long as this is.
            let _ = accepting.wait_for(|accepting| *accepting).await;
            // A drain waits for what is in the queue when the listener ends.
            let _coming = (!*shared.draining.borrow()).then(|| shared.live.coming());
            run.await;
        });
    }

    /// Has connections of pods that are added from now on wait in the kernel until
    /// [`DataPlane::serve`]: while pods are taken over one by one, what comes to the first may be
    /// for the last, whose namespace is not ours to use yet.
    pub fn hold(&self) {
        self.shared.accepting.send_replace(false);
    }

    /// The end of [`DataPlane::hold`].
    pub fn serve(&self) {
        self.shared.accepting.send_replace(true);
    }

    /// Ends the accept loops of a pod. Its connections go on until they end by themselves.
    /// `false`: there is no such pod.
    pub fn remove_pod(&self, id: &WorkloadId) -> bool {
        let Some(pod) = self.shared.remove(id) else { return false };
        pod.stop.send_replace(true);
        self.part(&pod);
        let left: HashSet<_> = self.shared.pods().iter().map(|p| p.port.cookie()).collect();
        self.shared.transport.retain(&left);
        true
    }

    /// Ends all accept loops.
    fn stop(&self) {
        for pod in self.shared.pods().into_iter().chain(still_there(&self.parted)) {
            pod.stop.send_replace(true);
        }
    }

    /// Closes the HTTP connections of a pod that wait. Those that are in use wait again afterwards.
    fn part(&self, pod: &Arc<Pod>) {
        pod.pool.clear();
        self.parted.lock().push(Arc::downgrade(pod));
    }

    /// The pods that are being served.
    #[must_use]
    pub fn pods(&self) -> Vec<WorkloadId> {
        self.shared.pods().iter().map(|pod| pod.id.clone()).collect()
    }

    /// Every connection at this moment, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.live.list()
    }

    /// Ends in an orderly way: no new connections; HTTP connections are asked to end after their
    /// current request; up to `deadline` for what is under way, then it is cut. Returns how many
    /// connections had to be cut.
    pub async fn drain(&self, deadline: Duration) -> usize {
        let until = Instant::now() + deadline;
        self.stop();
        self.shared.draining.send_replace(true);
        let transport = Arc::clone(&self.shared.transport);
        let (_, _) = tokio::join!(
            transport.drain(deadline),
            tokio::time::timeout_at(until.into(), self.shared.live.until_empty()),
        );
        let left = self.shared.live.count();
        if left > 0 {
            self.shared.live.each(|live| live.cut(Cut::Drained));
            let _ = tokio::time::timeout(FORCED, self.shared.live.until_empty()).await;
        }
        left
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop();
        self.housekeeping.iter().for_each(JoinHandle::abort);
    }
}

/// After every change of configuration, asks the policy of each live connection's destination
/// again, and cuts what it would not admit any more (row 9.25).
async fn follow_policy(shared: Arc<Shared>, changed: Arc<Notify>) {
    /// Changes that come in a burst are looked at together.
    const SETTLE: Duration = Duration::from_millis(20);
    loop {
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        let snapshot = shared.snapshots.load();
        shared.live.each(|live| {
            let Some(guarded) = live.guarded() else { return };
            if let Err(refused) = reach::still_admitted(&snapshot, &guarded) {
                let (workload, facts) = (&guarded.workload, &guarded.facts);
                let reason = refused.reason;
                tracing::info!(%workload, client = %facts.source, reason, "connection cut");
                live.cut(Cut::Policy(reason.into()));
            }
        });
    }
}

/// Those that have connections; the others are forgotten.
fn still_there(parted: &Parted) -> Vec<Arc<Pod>> {
    let mut parted = parted.lock();
    parted.retain(|pod| pod.strong_count() > 0);
    parted.iter().filter_map(Weak::upgrade).collect()
}

async fn sweep(shared: Arc<Shared>, parted: Parted) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.live.each(crate::live::Live::publish);
        let now = Instant::now();
        for pod in shared.pods().into_iter().chain(still_there(&parted)) {
            pod.pool.sweep(now);
        }
    }
}
