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
