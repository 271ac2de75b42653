//! Enrolment in step with the configuration: the local pods of the snapshot against what the
//! kernel captures.
//!
//! One thread does it, because each step is a handful of system calls and order matters: the
//! kernel is told first, and whatever stands between two steps is a pod whose connections are
//! refused, never one that is past the mesh without having left it.

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

pub use ports::{Captor, Carrier, Place};
use retry::Retry;
use seat::Seat;
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
            if let Some(seat) = self.seats.remove(&id)
                && let Some(retry) = self.vacate(&id, seat, Leaving::Gone, now)
            {
                self.seats.insert(id, Seat::Waiting(retry));
            }
        }
        for (id, wanted) in &mut wanted {
            self.settle(id, wanted, now);
        }
        self.let_leftovers_go(&wanted);
        self.publish(&wanted, now);
        let retries = self.seats.values().filter_map(Seat::next_try);
        retries.chain(search_again).min().unwrap_or(now + LOOK).min(now + LOOK).max(now)
    }

    /// One pod.
    fn settle(&mut self, id: &WorkloadId, wanted: &Wanted, now: Instant) {
        let seat = self.seats.remove(id);
        let seat = match (&wanted.pod.netns, seat) {
            // Whoever is captured and should be stays so, also when nobody can say any more where
            // the pod is.
            (None, Some(seat @ (Seat::Enrolled(_) | Seat::Refused(..)))) if wanted.enrolled => seat,
            (None, seat) => {
                let vacated = seat.and_then(|seat| self.vacate(id, seat, Leaving::Exempt, now));
                vacated.map_or(Seat::Idle(idle_reason(wanted)), Seat::Waiting)
            }
            (Some(path), seat) => {
                let place = self.around.captor.place(path);
                match seat {
                    // A seat in a namespace that is no longer the pod's is no seat.
                    Some(seat) if seat.is_elsewhere(place) => {
                        match self.vacate(id, seat, Leaving::Gone, now) {
                            Some(retry) => Seat::Waiting(retry),
                            None => self.place_in(id, wanted, path, place, None, now),
                        }
                    }
                    seat => self.place_in(id, wanted, path, place, seat, now),
                }
            }
        };
        self.seats.insert(id.clone(), seat);
    }

    fn place_in(
        &self,
        id: &WorkloadId,
        wanted: &Wanted,
        path: &Path,
        place: Option<Place>,
        seat: Option<Seat>,
        now: Instant,
    ) -> Seat {
        if wanted.enrolled {
            self.enrolled(id, wanted, path, place, seat, now)
        } else {
            self.outside(id, path, place, seat, now)
        }
    }

    fn enrolled(
        &self,
        id: &WorkloadId,
        wanted: &Wanted,
        path: &Path,
        place: Option<Place>,
        seat: Option<Seat>,
        now: Instant,
    ) -> Seat {
        let pod = &wanted.pod;
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
        let mut retry = match seat {
            Some(Seat::Enrolled(enrolled)) if enrolled.is(&spec) && wanted.refused.is_none() => {
                return Seat::Enrolled(enrolled);
            }
            Some(Seat::Refused(enrolled, why))
                if enrolled.is(&spec) && wanted.refused.as_ref() == Some(&why) =>
            {
                return Seat::Refused(enrolled, why);
            }
            Some(Seat::Waiting(retry)) if !retry.is_due(now) => return Seat::Waiting(retry),
            Some(Seat::Waiting(retry)) => retry,
            _ => Retry::new(now),
        };
        let Some(place) = place else {
            let reason = format!("waiting for the network namespace {}", spec.netns.display());
            if retry.failed(now, reason, false) {
                tracing::info!(pod = %id, netns = %spec.netns.display(), "waiting for the pod");
            }
            return Seat::Waiting(retry);
        };
        let joined = self.around.captor.enroll(&spec).and_then(|mut sockets| {
            if let Some(assigned) = &self.around.assigned {
                sockets.given = assigned.of(id, &pod.workload.uid);
            }
            if wanted.refused.is_some() {
                // Without its sockets whatever the kernel captures is refused.
                drop(sockets);
                self.around.carrier.remove_pod(id);
                return Ok(());
            }
            self.around.carrier.add_pod(Arc::clone(pod), sockets).map_err(|e| e.to_string())
        });
        match joined {
            Ok(()) => match &wanted.refused {
                Some(reason) => {
                    tracing::error!(pod = %id, %reason, "pod is captured and refused");
                    Seat::refused(spec, place, Arc::clone(reason))
                }
                None => Seat::enrolled(spec, place),
            },
            Err(reason) => {
                if retry.failed(now, reason.clone(), true) {
                    tracing::warn!(pod = %id, %reason, "pod cannot be captured; trying again");
                }
                Seat::Waiting(retry)
            }
        }
    }

    /// A pod outside the mesh.
    fn outside(
        &self,
        id: &WorkloadId,
        path: &Path,
        place: Option<Place>,
        seat: Option<Seat>,
        now: Instant,
    ) -> Seat {
        // Among leftovers may be this pod, which has left the mesh while no daemon ran.
        let captured_before = self.leftovers != Leftovers::None && place.is_some();
        if captured_before && !(self.around.current)() {
            // What is known may be old: then the pod may have joined since, and be captured.
            return seat.unwrap_or(Seat::Outside(None));
        }
        let exempt = self.around.refuse_unknown || captured_before;
        let retry = match seat {
            Some(seat @ Seat::Outside(Some(_))) => return seat,
            Some(Seat::Outside(None)) if !exempt => return Seat::Outside(None),
            Some(Seat::Waiting(retry)) if !retry.is_due(now) => return Seat::Waiting(retry),
            Some(seat @ (Seat::Enrolled(_) | Seat::Refused(..) | Seat::Waiting(_))) => {
                let retry = seat.retry();
                if let Some(retry) = self.vacate(id, seat, Leaving::Exempt, now) {
                    return Seat::Waiting(retry);
                }
                retry
            }
            _ => None,
        };
        if !exempt {
            return Seat::Outside(None);
        }
        let mut retry = retry.unwrap_or_else(|| Retry::new(now));
        let Some(place) = place else {
            retry.failed(now, format!("waiting for {}", path.display()), false);
            return Seat::Waiting(retry);
        };
        match self.around.captor.exempt(path) {
            Ok(cookie) => Seat::Outside(Some((cookie, place))),
            Err(reason) => {
                if retry.failed(now, reason.clone(), true) {
                    tracing::warn!(pod = %id, %reason, "pod cannot be exempted; it is refused");
                }
                Seat::Waiting(retry)
            }
        }
    }

    /// Gives a seat up. What the kernel refuses to give up stays refused, and is to be tried
    /// again.
    fn vacate(&self, id: &WorkloadId, seat: Seat, leaving: Leaving, now: Instant) -> Option<Retry> {
        let left = match &seat {
            // A pod that waits may be half captured: the kernel knows it, the data plane not.
            Seat::Enrolled(_) | Seat::Refused(..) | Seat::Waiting(_) => {
                let left = self.around.captor.leave(id, leaving);
                // New connections pass from here on; those under way are the carrier's to end.
                self.around.carrier.remove_pod(id);
                left
            }
            Seat::Outside(Some((cookie, _))) if leaving == Leaving::Gone => {
                self.around.captor.release(*cookie, leaving)
            }
            Seat::Outside(_) | Seat::Idle(_) => Ok(()),
        };
        let reason = left.err()?;
        let mut retry = seat.retry().unwrap_or_else(|| Retry::new(now));
        if retry.failed(now, reason.clone(), true) {
            tracing::warn!(pod = %id, %reason, "pod cannot be let go; it is refused");
        }
        Some(retry)
    }

    /// Pods that an earlier daemon captured and nobody wants now. They stay refused as long as one
    /// of them may be a pod that is wanted and has not been found yet.
    fn let_leftovers_go(&mut self, wanted: &BTreeMap<WorkloadId, Wanted>) {
        let captured =
            |id| matches!(self.seats.get(id), Some(Seat::Enrolled(_) | Seat::Refused(..)));
        if self.leftovers != Leftovers::Some
            || wanted.iter().any(|(id, w)| w.enrolled && !captured(id))
            || !(self.around.complete)()
            || !(self.around.current)()
        {
            return;
        }
        let released = self.around.captor.leftovers().and_then(|cookies| {
            for cookie in cookies {
                tracing::info!(netns = %cookie, "letting go what an earlier daemon captured");
                self.around.captor.release(cookie, Leaving::Gone)?;
            }
            Ok(())
        });
        match released {
            Ok(()) => self.leftovers = Leftovers::None,
            Err(reason) => tracing::warn!(%reason, "leftovers of an earlier daemon stay refused"),
        }
    }

    fn publish(&self, wanted: &BTreeMap<WorkloadId, Wanted>, now: Instant) {
        let status = self
            .seats
            .iter()
            .map(|(id, seat)| {
                let netns = wanted.get(id).and_then(|w| w.pod.netns.clone());
                seat.status(id, netns, now)
            })
            .collect();
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
