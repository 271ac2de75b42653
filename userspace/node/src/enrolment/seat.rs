//! Where one local pod stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_capture::PodSpec;
use fairlead_types::{NetnsCookie, WorkloadId};

use super::Place;
use super::ports::Hold;
use super::retry::Retry;

/// A captured pod.
#[derive(Debug)]
pub(super) struct Enrolled {
    spec: PodSpec,
    /// Empty where nobody says.
    uid: Arc<str>,
    pub(super) place: Place,
    pub(super) cookie: NetnsCookie,
    /// Without sockets nobody else holds the namespace.
    _hold: Hold,
}

impl Enrolled {
    pub(super) fn new(
        spec: PodSpec,
        uid: Arc<str>,
        (place, hold): (Place, Hold),
        cookie: NetnsCookie,
    ) -> Self {
        Self { spec, uid, place, cookie, _hold: hold }
    }

    /// Whether it is captured in just this way.
    pub(super) fn is(&self, spec: &PodSpec, uid: &str) -> bool {
        self.spec == *spec && *self.uid == *uid
    }

    /// Whether that is another pod, of the same name.
    fn is_not(&self, uid: &str) -> bool {
        !self.uid.is_empty() && !uid.is_empty() && *self.uid != *uid
    }
}

/// A pod that passes where unknown namespaces are refused.
#[derive(Debug)]
pub(super) struct Exempted {
    pub(super) cookie: NetnsCookie,
    pub(super) place: Place,
    /// Nobody else holds the namespace.
    pub(super) _hold: Hold,
}

#[derive(Debug)]
pub(super) enum Seat {
    Enrolled(Enrolled),
    /// Captured, and refused for a reason.
    Refused(Enrolled, Arc<str>),
    /// Something has to be tried again; the kernel may have captured this.
    Waiting(Retry, Option<Enrolled>),
    /// Not in the mesh; exempted where unknown namespaces are refused.
    Outside(Option<Exempted>),
    /// Nothing can be done until the configuration changes.
    Idle(&'static str),
}

impl Seat {
    /// The attempts so far, when something is being tried.
    pub(super) fn retry(&self) -> Option<Retry> {
        match self {
            Self::Waiting(retry, _) => Some(retry.clone()),
            _ => None,
        }
    }

    /// What the kernel has captured, or may have.
    pub(super) fn captured(&self) -> Option<&Enrolled> {
        match self {
            Self::Enrolled(enrolled) | Self::Refused(enrolled, _) => Some(enrolled),
            Self::Waiting(_, enrolled) => enrolled.as_ref(),
            Self::Outside(_) | Self::Idle(_) => None,
        }
    }

    /// The same.
    pub(super) fn into_captured(self) -> Option<Enrolled> {
        match self {
            Self::Enrolled(enrolled) | Self::Refused(enrolled, _) => Some(enrolled),
            Self::Waiting(_, enrolled) => enrolled,
            Self::Outside(_) | Self::Idle(_) => None,
        }
    }

    /// Whether the seat is not that of the pod with this `uid`, at `now`: it is in another
    /// namespace. When there is none, nobody knows better than what was known: a captured pod stays
    /// captured until it is seen elsewhere or leaves the configuration, or another takes its name.
    pub(super) fn is_elsewhere(&self, now: Option<Place>, uid: &str) -> bool {
        match (self, self.captured(), now) {
            (_, Some(enrolled), Some(now)) => enrolled.place != now,
            (_, Some(enrolled), None) => enrolled.is_not(uid),
            (Self::Outside(Some(exempted)), None, Some(now)) => exempted.place != now,
            _ => false,
        }
    }

    pub(super) fn next_try(&self) -> Option<Instant> {
        match self {
            Self::Waiting(retry, _) => Some(retry.next()),
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
            Self::Waiting(retry, _) => {
                let waiting = now.saturating_duration_since(retry.since);
                (PodState::Waiting, Some(retry.reason.clone()), Some(waiting))
            }
            Self::Outside(_) => (PodState::Outside, None, None),
            Self::Idle(why) => (PodState::Outside, Some((*why).to_owned()), None),
        };
        let place = match self {
            Self::Enrolled(enrolled) | Self::Refused(enrolled, _) => Some(enrolled.place),
            Self::Outside(Some(exempted)) => Some(exempted.place),
            Self::Waiting(..) | Self::Outside(None) | Self::Idle(_) => None,
        };
        PodStatus { id: id.clone(), netns, place, state, reason, waiting }
    }
}

/// A pod that the configuration has no more, and that may run on: it is captured and refused.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: WorkloadId,
    pub(super) captured: Enrolled,
    /// Letting it go, once it is gone.
    pub(super) retry: Retry,
}

impl Held {
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            id: self.id.clone(),
            netns: None,
            place: Some(self.captured.place),
            state: PodState::Refused,
            reason: Some(
                "its object is gone, or it has ended; it is refused until its sandbox is gone, too"
                    .into(),
            ),
            waiting: None,
        }
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
