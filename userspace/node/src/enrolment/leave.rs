//! How pods leave: those that the configuration has no more, or outside of the mesh, and what an
//! earlier daemon left.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use fairlead_capture::{Leaving, PodSpec};
use fairlead_types::{NetnsCookie, WorkloadId};

use super::retry::Retry;
use super::seat::{Enrolled, Held, Seat};
use super::{Enrolment, Hold, Leftovers, Place, Wanted};
use crate::discovery::Namespace;

impl Enrolment {
    /// Gives up the seat of a pod that the configuration has no more, or has elsewhere. On a cluster
    /// it may run on, and is held.
    pub(super) fn give_up(&mut self, id: &WorkloadId, seat: Seat, now: Instant) -> Option<Seat> {
        let outlives = self.around.locator.as_ref().is_some_and(|l| l.pods_outlive_their_objects());
        if !outlives || seat.captured().is_none() {
            return self.vacate(id, seat, Leaving::Gone, now);
        }
        // Without its sockets whatever the kernel captures is refused.
        self.around.carrier.remove_pod(id);
        let captured = seat.into_captured()?;
        self.held.push(Held { id: id.clone(), captured, retry: Retry::new(now) });
        None
    }

    /// Lets go of those that are gone, of all that were held.
    pub(super) fn let_held_go(&mut self, now: Instant) {
        let Some(locator) = &self.around.locator else { return };
        let places = self.held.iter().map(|held| held.captured.place).collect();
        let remaining = locator.remaining(&places, now);
        let captor = &self.around.captor;
        self.held.retain_mut(|held| {
            if remaining.contains(&held.captured.place) || !held.retry.is_due(now) {
                return true;
            }
            let left = captor.leave(&held.id, held.captured.cookie, Leaving::Gone);
            let Err(reason) = left else { return false };
            if held.retry.failed(now, reason.clone(), true) {
                tracing::warn!(pod = %held.id, %reason, "pod cannot be let go; it is refused");
            }
            true
        });
    }

    /// Gives a seat up. What the kernel refuses to give up stays refused, and is to be tried
    /// again.
    pub(super) fn vacate(
        &self,
        id: &WorkloadId,
        seat: Seat,
        leaving: Leaving,
        now: Instant,
    ) -> Option<Seat> {
        let retry = seat.retry();
        let exempted = match &seat {
            Seat::Outside(Some(exempted)) if leaving == Leaving::Gone => Some(exempted.cookie),
            _ => None,
        };
        let waiting = matches!(seat, Seat::Waiting(..));
        let captured = seat.into_captured();
        let left = match (&captured, exempted) {
            (Some(captured), _) => self.around.captor.leave(id, captured.cookie, leaving),
            (None, Some(cookie)) => self.around.captor.release(cookie, leaving),
            (None, None) => Ok(()),
        };
        if captured.is_some() || waiting {
            // New connections pass from here on; those under way are the carrier's to end.
            self.around.carrier.remove_pod(id);
        }
        let reason = left.err()?;
        let mut retry = retry.unwrap_or_else(|| Retry::new(now));
        if retry.failed(now, reason.clone(), true) {
            tracing::warn!(pod = %id, %reason, "pod cannot be let go; it is refused");
        }
        Some(Seat::Waiting(retry, captured))
    }

    /// Pods that an earlier daemon captured and nobody wants now. They stay refused as long as one
    /// of them may be a pod that is wanted and has not been found yet; those that run on without
    /// their objects are held.
    pub(super) fn let_leftovers_go(&mut self, wanted: &BTreeMap<WorkloadId, Wanted>, now: Instant) {
        let captured =
            |id| matches!(self.seats.get(id), Some(Seat::Enrolled(_) | Seat::Refused(..)));
        if self.leftovers != Leftovers::Some
            || wanted.iter().any(|(id, w)| w.enrolled && !captured(id))
            || !(self.around.complete)()
            || !(self.around.current)()
        {
            return;
        }
        let captor = Arc::clone(&self.around.captor);
        let released = captor.leftovers().and_then(|cookies| {
            let mut running = self.running_without_objects(&cookies, wanted);
            for cookie in cookies {
                if let Some((uid, namespace)) = running.remove(&cookie) {
                    self.hold(&uid, namespace, now)?;
                    continue;
                }
                tracing::info!(netns = %cookie, "letting go what an earlier daemon captured");
                captor.release(cookie, Leaving::Gone)?;
            }
            Ok(())
        });
        match released {
            Ok(()) => self.leftovers = Leftovers::None,
            Err(reason) => tracing::warn!(%reason, "leftovers of an earlier daemon stay refused"),
        }
    }

    /// Those of these namespaces in which pods run that the configuration has no more.
    fn running_without_objects(
        &self,
        cookies: &[NetnsCookie],
        wanted: &BTreeMap<WorkloadId, Wanted>,
    ) -> HashMap<NetnsCookie, (String, Namespace)> {
        let locator = self.around.locator.as_ref().filter(|l| l.pods_outlive_their_objects());
        let Some(locator) = locator.filter(|_| !cookies.is_empty()) else { return HashMap::new() };
        let listed = wanted.values().map(|wanted| &*wanted.pod.workload.uid).collect();
        let with_cookie = |(uid, namespace): (String, Namespace)| {
            let cookie = self.around.captor.cookie(&namespace.path()).ok()?;
            cookies.contains(&cookie).then_some((cookie, (uid, namespace)))
        };
        locator.unlisted(&listed).into_iter().filter_map(with_cookie).collect()
    }

    /// Holds a pod of which an earlier daemon knew more.
    fn hold(&mut self, uid: &str, namespace: Namespace, now: Instant) -> Result<(), String> {
        let id = WorkloadId::new("uid", uid);
        let spec = PodSpec::new(id.clone(), namespace.path());
        // Without its sockets whatever the kernel captures is refused.
        let cookie = self.around.captor.enroll(&spec)?.port.cookie();
        let hold: (Place, Hold) = (namespace.place(), Box::new(namespace));
        let captured = Enrolled::new(spec, uid.into(), hold, cookie);
        self.held.push(Held { id, captured, retry: Retry::new(now) });
        Ok(())
    }
}
