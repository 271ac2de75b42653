//! Enrolment in step with the configuration: the local pods of the snapshot against what the
//! kernel captures.
//!
//! One thread does it, because each step is a handful of system calls and order matters: the
//! kernel is told first, and whatever stands between two steps is a pod whose connections are
//! refused, never one that is past the mesh without having left it.
//!
//! On a cluster, a pod's object may go before the pod does (a deletion by force, a node out of
//! service). It is held then: captured, and refused, until its sandbox and its processes are gone.

mod leave;
mod ports;
mod retry;
mod seat;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fairlead_capture::{Leaving, PodSpec};
use fairlead_config::SnapshotHandle;
use fairlead_config::model::LocalPod;
use fairlead_types::{SpiffeId, WorkloadId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cni::Assigned;
use crate::discovery::Locator;

pub use ports::{Captor, Carrier, Hold, Place};
use retry::Retry;
use seat::{Enrolled, Exempted, Held, Seat};
pub use seat::{PodState, PodStatus};

/// How often the namespaces of known pods are looked at: a pod that is made anew under the same
/// name has another one.
const LOOK: Duration = Duration::from_secs(1);

/// Says which identities need certificates.
pub type Retain = Box<dyn Fn(&HashSet<SpiffeId>) + Send>;

/// What [`Enrolment`] needs of the rest of the daemon.
pub struct Surroundings {
    /// The configuration.
    pub snapshots: SnapshotHandle,
    /// The kernel.
    pub captor: Arc<dyn Captor>,
    /// The data plane.
    pub carrier: Arc<dyn Carrier>,
    /// Holds certificates of exactly these identities.
    pub retain: Retain,
    /// Whether everything in the source could be read and used. While it could not, a pod that is
    /// missing from the snapshot may only have been misspelt: nobody is let go for want of it.
    pub complete: Box<dyn Fn() -> bool + Send>,
    /// Whether the source itself has told all of it since the daemon started. What was only kept
    /// on disk may be older than what an earlier daemon captured by: nothing of that is let go.
    pub current: Box<dyn Fn() -> bool + Send>,
    /// Whether network namespaces that nobody has spoken for are refused: then pods outside the
    /// mesh have to be exempted.
    pub refuse_unknown: bool,
    /// Where pods are. Without it, where their annotation says.
    pub locator: Option<Arc<Locator>>,
    /// The addresses that they were given.
    pub assigned: Option<Arc<Assigned>>,
}

/// The table of local pods, for the admin API. Cloning shares it.
pub type Table = Arc<Mutex<Vec<PodStatus>>>;

/// Keeps enrolment in step.
pub struct Enrolment {
    around: Surroundings,
    seats: BTreeMap<WorkloadId, Seat>,
    /// No more than the kernel's table of pods has room for.
    held: Vec<Held>,
    identities: HashSet<SpiffeId>,
    leftovers: Leftovers,
    table: Table,
    passes: watch::Sender<u64>,
}

/// What an earlier daemon left captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leftovers {
    /// Not looked at yet.
    Unknown,
    /// There are some, refused.
    Some,
    /// There are none any more.
    None,
}

/// What a pod should be.
struct Wanted {
    pod: Arc<LocalPod>,
    enrolled: bool,
    /// Why its traffic is captured only to be refused.
    refused: Option<Arc<str>>,
}

impl Enrolment {
    /// Nothing is enrolled yet.
    #[must_use]
    pub fn new(around: Surroundings) -> Self {
        Self {
            around,
            seats: BTreeMap::new(),
            held: Vec::new(),
            identities: HashSet::new(),
            leftovers: Leftovers::Unknown,
            table: Table::default(),
            passes: watch::Sender::new(0),
        }
    }

    /// The same with a table that others have already.
    #[must_use]
    pub fn with_table(mut self, table: Table) -> Self {
        self.table = table;
        self
    }

    /// Told after each pass, when the table is up to date.
    #[must_use]
    pub fn passes(&self) -> watch::Receiver<u64> {
        self.passes.subscribe()
    }

    /// The table of local pods.
    #[must_use]
    pub fn table(&self) -> Table {
        Arc::clone(&self.table)
    }

    /// Works until the sender of `changed` is dropped; every message is a reason to look at the
    /// snapshot. `first` is called after the first pass.
    pub fn run(mut self, changed: &Receiver<()>, first: impl FnOnce()) {
        let mut next = self.pass(Instant::now());
        first();
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            match changed.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // One pass serves all changes up to here.
            while changed.try_recv().is_ok() {}
            next = self.pass(Instant::now());
        }
    }

    /// Brings everything in step with the present snapshot; returns when to look again.
    pub fn pass(&mut self, now: Instant) -> Instant {
        self.pass_while(now, &mut || true)
    }

    /// The same for as long as this daemon may change what the kernel holds of pods, which is asked
    /// before each.
    pub fn pass_while(&mut self, now: Instant, may_go_on: &mut dyn FnMut() -> bool) -> Instant {
        let snapshot = self.around.snapshots.load();
        let (local, search_again) = match &self.around.locator {
            Some(locator) => locator.locate(snapshot.local.iter(), now),
            None => {
                let own = |(id, pod): (&WorkloadId, &Arc<LocalPod>)| (id.clone(), Arc::clone(pod));
                (snapshot.local.iter().map(own).collect(), None)
            }
        };
        if let Some(assigned) = &self.around.assigned
            && (self.around.current)()
        {
            assigned.prune(|id| snapshot.local.contains_key(id), now);
        }
        let mut wanted: BTreeMap<WorkloadId, Wanted> = local
            .into_iter()
            .map(|(id, pod)| {
                let refused = snapshot.refused.get(&id).cloned();
                let enrolled = pod.workload.enrolled;
                let wanted = Wanted { pod, enrolled, refused };
                (id, wanted)
            })
            .collect();
        if self.leftovers == Leftovers::Unknown {
            self.leftovers = match self.around.captor.leftovers() {
                Ok(cookies) if cookies.is_empty() => Leftovers::None,
                // Whoever cannot be listed may be there.
                Ok(_) | Err(_) => Leftovers::Some,
            };
        }
        // Certificates first: they take longest.
        let identities: HashSet<SpiffeId> = wanted
            .values()
            .filter(|w| w.enrolled)
            .map(|w| w.pod.workload.identity.clone())
            .collect();
        if identities != self.identities {
            (self.around.retain)(&identities);
            self.identities = identities;
        }
        let gone: Vec<WorkloadId> =
            self.seats.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
        for id in gone {
            if !may_go_on() {
                return now;
            }
            if let Some(seat) = self.seats.remove(&id)
                && let Some(seat) = self.give_up(&id, seat, now)
            {
                self.seats.insert(id, seat);
            }
        }
        for (id, wanted) in &mut wanted {
            if !may_go_on() {
                return now;
            }
            self.settle(id, wanted, now);
        }
        if !may_go_on() {
            return now;
        }
        self.let_held_go(now);
        self.let_leftovers_go(&wanted, now);
        self.publish(&wanted, now);
        let retries = self.seats.values().filter_map(Seat::next_try);
        retries.chain(search_again).min().unwrap_or(now + LOOK).min(now + LOOK).max(now)
    }

    /// One pod.
    fn settle(&mut self, id: &WorkloadId, wanted: &Wanted, now: Instant) {
        let path = wanted.pod.netns.as_deref();
        let place = path.and_then(|path| self.around.captor.place(path));
        let mut seat = self.seats.remove(id);
        // A seat in a namespace that is no longer the pod's is no seat.
        if let Some(elsewhere) = seat.take_if(|s| s.is_elsewhere(place, &wanted.pod.workload.uid))
            && let Some(still) = self.give_up(id, elsewhere, now)
        {
            self.seats.insert(id.clone(), still);
            return;
        }
        if seat.as_ref().is_none_or(|seat| seat.captured().is_none())
            && let Some(at) = self.held.iter().position(|held| Some(held.captured.place) == place)
        {
            // The configuration has it again.
            let held = self.held.swap_remove(at);
            seat = Some(Seat::Waiting(Retry::new(now), Some(held.captured)));
        }
        let seat = match (path, seat) {
            // Whoever is captured and should be stays so, also when nobody can say any more where
            // the pod is.
            (None, Some(seat @ (Seat::Enrolled(_) | Seat::Refused(..)))) if wanted.enrolled => seat,
            (None, seat) => {
                let vacated = seat.and_then(|seat| self.vacate(id, seat, Leaving::Exempt, now));
                vacated.unwrap_or(Seat::Idle(idle_reason(wanted)))
            }
            (Some(path), seat) if wanted.enrolled => {
                self.enrolled(id, wanted, path, place.is_some(), seat, now)
            }
            (Some(path), seat) => self.outside(id, path, place.is_some(), seat, now),
        };
        self.seats.insert(id.clone(), seat);
    }

    fn enrolled(
        &self,
        id: &WorkloadId,
        wanted: &Wanted,
        path: &Path,
        is_there: bool,
        seat: Option<Seat>,
        now: Instant,
    ) -> Seat {
        let pod = &wanted.pod;
        let uid = &pod.workload.uid;
        let spec = PodSpec {
            excluded_outbound_ports: pod.exclude_outbound_ports.to_vec(),
            excluded_outbound_ranges: pod.exclude_outbound_cidrs.to_vec(),
            excluded_inbound_ports: pod.workload.exclude_inbound_ports.to_vec(),
            only_outbound_ranges: pod.include_outbound_cidrs.as_ref().map(|all| all.to_vec()),
            only_outbound_ports: pod.include_outbound_ports.to_vec(),
            only_inbound_ports: pod.workload.include_inbound_ports.as_ref().map(|all| all.to_vec()),
            probe_ports: pod.probe_ports.to_vec(),
            ..PodSpec::new(id.clone(), path.to_owned())
        };
        let (mut retry, before) = match seat {
            Some(Seat::Enrolled(enrolled))
                if enrolled.is(&spec, uid) && wanted.refused.is_none() =>
            {
                return Seat::Enrolled(enrolled);
            }
            Some(Seat::Refused(enrolled, why))
                if enrolled.is(&spec, uid) && wanted.refused.as_ref() == Some(&why) =>
            {
                return Seat::Refused(enrolled, why);
            }
            Some(Seat::Waiting(retry, before)) if !retry.is_due(now) => {
                return Seat::Waiting(retry, before);
            }
            Some(Seat::Waiting(retry, before)) => (retry, before),
            seat => (Retry::new(now), seat.and_then(Seat::into_captured)),
        };
        let is_before = |place| before.as_ref().is_none_or(|before| before.place == place);
        let hold = if is_there { self.around.captor.hold(path) } else { None };
        let Some(hold) = hold.filter(|(place, _)| is_before(*place)) else {
            let reason = format!("waiting for the network namespace {}", spec.netns.display());
            if retry.failed(now, reason, false) {
                tracing::info!(pod = %id, netns = %spec.netns.display(), "waiting for the pod");
            }
            return Seat::Waiting(retry, before);
        };
        let failed = |mut retry: Retry, captured, reason: String| {
            if retry.failed(now, reason.clone(), true) {
                tracing::warn!(pod = %id, %reason, "pod cannot be captured; trying again");
            }
            Seat::Waiting(retry, captured)
        };
        let mut sockets = match self.around.captor.enroll(&spec) {
            Ok(sockets) => sockets,
            Err(reason) => return failed(retry, before, reason),
        };
        let captured = Enrolled::new(spec, Arc::clone(uid), hold, sockets.port.cookie());
        if let Some(assigned) = &self.around.assigned {
            sockets.given = assigned.of(id, uid);
        }
        if let Some(reason) = &wanted.refused {
            // Without its sockets whatever the kernel captures is refused.
            drop(sockets);
            self.around.carrier.remove_pod(id);
            tracing::error!(pod = %id, %reason, "pod is captured and refused");
            return Seat::Refused(captured, Arc::clone(reason));
        }
        match self.around.carrier.add_pod(Arc::clone(pod), sockets) {
            Ok(()) => Seat::Enrolled(captured),
            Err(reason) => failed(retry, Some(captured), reason),
        }
    }

    /// A pod outside the mesh.
    fn outside(
        &self,
        id: &WorkloadId,
        path: &Path,
        is_there: bool,
        seat: Option<Seat>,
        now: Instant,
    ) -> Seat {
        // Among leftovers may be this pod, which has left the mesh while no daemon ran.
        let captured_before = self.leftovers != Leftovers::None && is_there;
        if captured_before && !(self.around.current)() {
            // What is known may be old: then the pod may have joined since, and be captured.
            return seat.unwrap_or(Seat::Outside(None));
        }
        let exempt = self.around.refuse_unknown || captured_before;
        let retry = match seat {
            Some(seat @ Seat::Outside(Some(_))) => return seat,
            Some(Seat::Outside(None)) if !exempt => return Seat::Outside(None),
            Some(Seat::Waiting(retry, captured)) if !retry.is_due(now) => {
                return Seat::Waiting(retry, captured);
            }
            Some(seat @ (Seat::Enrolled(_) | Seat::Refused(..) | Seat::Waiting(..))) => {
                let retry = seat.retry();
                if let Some(seat) = self.vacate(id, seat, Leaving::Exempt, now) {
                    return seat;
                }
                retry
            }
            _ => None,
        };
        if !exempt {
            return Seat::Outside(None);
        }
        let mut retry = retry.unwrap_or_else(|| Retry::new(now));
        let hold = if is_there { self.around.captor.hold(path) } else { None };
        let Some((place, hold)) = hold else {
            retry.failed(now, format!("waiting for {}", path.display()), false);
            return Seat::Waiting(retry, None);
        };
        match self.around.captor.exempt(path) {
            Ok(cookie) => Seat::Outside(Some(Exempted { cookie, place, _hold: hold })),
            Err(reason) => {
                if retry.failed(now, reason.clone(), true) {
                    tracing::warn!(pod = %id, %reason, "pod cannot be exempted; it is refused");
                }
                Seat::Waiting(retry, None)
            }
        }
    }

    fn publish(&self, wanted: &BTreeMap<WorkloadId, Wanted>, now: Instant) {
        let seats = self.seats.iter().map(|(id, seat)| {
            let netns = wanted.get(id).and_then(|w| w.pod.netns.clone());
            seat.status(id, netns, now)
        });
        // Whoever looks for a name finds the pod that has it now first.
        let status = seats.chain(self.held.iter().map(Held::status)).collect();
        *self.table.lock() = status;
        self.passes.send_modify(|passes| *passes += 1);
    }
}

fn idle_reason(wanted: &Wanted) -> &'static str {
    if wanted.enrolled {
        "no network namespace is known: annotate the pod with fairlead.io/netns, or let the CNI \
         plugin tell"
    } else {
        "not in the mesh"
    }
}

#[cfg(test)]
mod tests;
