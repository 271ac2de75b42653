//! Whether the daemon is ready, and if not, why.

use std::sync::Arc;

use parking_lot::Mutex;

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not everything runs yet.
    Starting,
    /// Pods that were there at the start are captured; traffic flows.
    Ready,
    /// Ending.
    Draining,
}

impl Phase {
    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Starting => "starting: the pods of this node are being enrolled",
            Self::Ready => "ready",
            Self::Draining => "draining: no new connections are taken",
        }
    }

    /// The status and the text that `/ready` answers with. Whoever asks for a pod to be in the
    /// mesh and is not understood must not be told that all is well: `unenrolled` are the
    /// Namespaces and Pods that are refused and have no good version.
    #[must_use]
    pub fn answer(self, unenrolled: &[String]) -> (u16, String) {
        match (self, unenrolled) {
            (Self::Ready, []) => (200, format!("{}\n", self.words())),
            (Self::Ready, [first, others @ ..]) => {
                let more = match others.len() {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                let what = "cannot be read, and no earlier version could: who is in the mesh is not \
                            known (see /problems)";
                (503, format!("not ready: {first}{more} {what}\n"))
            }
            (Self::Starting | Self::Draining, _) => (503, format!("{}\n", self.words())),
        }
    }
}

/// The phase. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Phase>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Phase::Starting)))
    }
}

impl Readiness {
    /// The phase.
    #[must_use]
    pub fn get(&self) -> Phase {
        *self.0.lock()
    }

    /// The first pass of enrolment is done. Whoever is draining stays so.
    pub fn started(&self) {
        let mut phase = self.0.lock();
        if *phase == Phase::Starting {
            *phase = Phase::Ready;
        }
    }

    /// The end has begun.
    pub fn draining(&self) {
        *self.0.lock() = Phase::Draining;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_read_keeps_the_node_from_being_ready() {
        let bad = ["Pod default/a".to_owned(), "Namespace shop".to_owned()];
        assert_eq!(Phase::Ready.answer(&[]), (200, "ready\n".to_owned()));
        let (status, text) = Phase::Ready.answer(&bad);
        assert!(status == 503 && text.contains("Pod default/a and 1 more"), "{text}");
        assert_eq!(Phase::Starting.answer(&[]).0, 503);
        assert!(Phase::Draining.answer(&bad).1.starts_with("draining"));
    }
}
