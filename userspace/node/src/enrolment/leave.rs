//! How pods leave: those that the configuration has no more, or outside of the mesh, and what an
//! earlier daemon left.

use std::collections::BTreeMap;
use std::time::Instant;

use fairlead_capture::Leaving;
use fairlead_types::WorkloadId;

use super::retry::Retry;
use super::seat::{Held, Seat};
use super::{Enrolment, Leftovers, Wanted};

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
    /// of them may be a pod that is wanted and has not been found yet.
    pub(super) fn let_leftovers_go(&mut self, wanted: &BTreeMap<WorkloadId, Wanted>) {
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
}
