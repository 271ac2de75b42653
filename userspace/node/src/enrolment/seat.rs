//! Where one local pod stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_capture::PodSpec;
use fairlead_types::{NetnsCookie, WorkloadId};

use super::Place;
use super::retry::Retry;

/// A captured pod.
#[derive(Debug)]
pub(super) struct Enrolled {
    spec: PodSpec,
    place: Place,
}

impl Enrolled {
    /// Whether it is captured in just this way.
    pub(super) fn is(&self, spec: &PodSpec) -> bool {
        self.spec == *spec
    }
}

#[derive(Debug)]
pub(super) enum Seat {
    Enrolled(Enrolled),
    /// Captured, and refused for a reason.
    Refused(Enrolled, Arc<str>),
    /// Something has to be tried again.
    Waiting(Retry),
    /// Not in the mesh; exempted where unknown namespaces are refused.
    Outside(Option<(NetnsCookie, Place)>),
    /// Nothing can be done until the configuration changes.
    Idle(&'static str),
}

impl Seat {
    pub(super) fn enrolled(spec: PodSpec, place: Place) -> Self {
        Self::Enrolled(Enrolled { spec, place })
    }

    pub(super) fn refused(spec: PodSpec, place: Place, reason: Arc<str>) -> Self {
        Self::Refused(Enrolled { spec, place }, reason)
    }

    /// The attempts so far, when something is being tried.
    pub(super) fn retry(&self) -> Option<Retry> {
        match self {
            Self::Waiting(retry) => Some(retry.clone()),
            _ => None,
        }
    }

    /// Whether the seat is in another namespace than the one at `now`. When there is none, nobody
    /// knows better than what was known: a captured pod stays captured until it is seen
    /// elsewhere or leaves the configuration.
    pub(super) fn is_elsewhere(&self, now: Option<Place>) -> bool {
        match self {
            Self::Enrolled(enrolled) | Self::Refused(enrolled, _) => {
                now.is_some_and(|place| place != enrolled.place)
            }
            Self::Outside(Some((_, place))) => now.is_some_and(|now| now != *place),
            Self::Outside(None) | Self::Waiting(_) | Self::Idle(_) => false,
        }
    }

    pub(super) fn next_try(&self) -> Option<Instant> {
        match self {
            Self::Waiting(retry) => Some(retry.next()),
            _ => None,
        }
    }

    pub(super) fn status(
        &self,
        id: &WorkloadId,
        netns: Option<PathBuf>,
        now: Instant,
    ) -> PodStatus {
        let (state, reason, waiting) = match self {
            Self::Enrolled(_) => (PodState::Captured, None, None),
            Self::Refused(_, why) => (PodState::Refused, Some(why.to_string()), None),
            Self::Waiting(retry) => {
                let waiting = now.saturating_duration_since(retry.since);
                (PodState::Waiting, Some(retry.reason.clone()), Some(waiting))
            }
            Self::Outside(_) => (PodState::Outside, None, None),
            Self::Idle(why) => (PodState::Outside, Some((*why).to_owned()), None),
        };
        let place = match self {
            Self::Enrolled(enrolled) | Self::Refused(enrolled, _) => Some(enrolled.place),
            Self::Outside(Some((_, place))) => Some(*place),
            Self::Waiting(_) | Self::Outside(None) | Self::Idle(_) => None,
        };
        PodStatus { id: id.clone(), netns, place, state, reason, waiting }
    }
}

/// Where a pod stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Its traffic comes to the daemon.
    Captured,
    /// Its traffic is captured, and refused.
    Refused,
    /// It should be captured (or exempted) and cannot be yet.
    Waiting,
    /// It is not in the mesh.
    Outside,
}

impl PodState {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
            Self::Outside => "outside",
        }
    }
}

/// A line of the table of local pods.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// The pod.
    pub id: WorkloadId,
    /// Path of its network namespace.
    pub netns: Option<PathBuf>,
    /// Which namespace that is, once something has been done there.
    pub place: Option<Place>,
    /// Where it stands.
    pub state: PodState,
    /// Why it is not captured.
    pub reason: Option<String>,
    /// How long it has been waiting.
    pub waiting: Option<Duration>,
}
