//! What enrolment needs of the kernel and of the data plane, so that it can be tried without
//! either.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use fairlead_capture::{Capture, Leaving, PodSpec};
use fairlead_config::model::LocalPod;
use fairlead_types::{NetnsCookie, PodSockets, WorkloadId};

use crate::discovery::Namespace;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Which network namespace is at a path: device and inode. The kernel gives the number of one that
/// is gone to the next that is made: it says which one only while the namespace is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(pub u64, pub u64);

/// Holds a network namespace until it is dropped.
pub type Hold = Box<dyn fmt::Debug + Send>;

/// Captures pods. Errors are words for people: nothing is decided by them.
pub trait Captor: Send + Sync {
    /// Captures a pod.
    ///
    /// # Errors
    /// Why it could not be; then it is as before, or refused.
    fn enroll(&self, spec: &PodSpec) -> Result<PodSockets, String>;
    /// Lets a pod go that was captured in this namespace.
    ///
    /// # Errors
    /// Why it could not be.
    fn leave(&self, id: &WorkloadId, netns: NetnsCookie, leaving: Leaving) -> Result<(), String>;
    /// Lets a namespace pass where unknown ones are refused.
    ///
    /// # Errors
    /// Why it could not be.
    fn exempt(&self, netns: &Path) -> Result<NetnsCookie, String>;
    /// What an earlier daemon captured and nobody has enrolled again.
    ///
    /// # Errors
    /// Why it cannot be listed.
    fn leftovers(&self) -> Result<Vec<NetnsCookie>, String>;
    /// Lets one of those go, or one that was exempted.
    ///
    /// # Errors
    /// Why it could not be.
    fn release(&self, netns: NetnsCookie, leaving: Leaving) -> Result<(), String>;
    /// Which namespace is at a path now; `None`: none.
    fn place(&self, netns: &Path) -> Option<Place>;
    /// The cookie of the namespace at a path.
    ///
    /// # Errors
    /// There is none.
    fn cookie(&self, netns: &Path) -> Result<NetnsCookie, String>;
    /// Which namespace is at a path, and holds it.
    fn hold(&self, netns: &Path) -> Option<(Place, Hold)>;
}

impl Captor for Capture {
    fn enroll(&self, spec: &PodSpec) -> Result<PodSockets, String> {
        Self::enroll(self, spec).map_err(|e| e.to_string())
    }

    fn leave(&self, id: &WorkloadId, netns: NetnsCookie, leaving: Leaving) -> Result<(), String> {
        // By its namespace: another one may go on under the same name.
        Self::release(self, netns, leaving).map_err(|e| e.to_string())?;
        tracing::info!(pod = %id, %netns, ?leaving, "pod is no longer captured");
        Ok(())
    }

    fn exempt(&self, netns: &Path) -> Result<NetnsCookie, String> {
        Self::exempt(self, netns).map_err(|e| e.to_string())
    }

    fn leftovers(&self) -> Result<Vec<NetnsCookie>, String> {
        Self::leftovers(self).map_err(|e| e.to_string())
    }

    fn release(&self, netns: NetnsCookie, leaving: Leaving) -> Result<(), String> {
        Self::release(self, netns, leaving).map_err(|e| e.to_string())
    }

    fn place(&self, netns: &Path) -> Option<Place> {
        // A path that `ip netns add` is making, or `del` taking down, is an empty file for a
        // moment: not a namespace.
        let file_system = rustix::fs::statfs(netns).ok()?;
        if file_system.f_type != NSFS_MAGIC {
            return None;
        }
        std::fs::metadata(netns).ok().map(|m| Place(m.dev(), m.ino()))
    }

    fn cookie(&self, netns: &Path) -> Result<NetnsCookie, String> {
        fairlead_capture::netns_cookie(netns).map_err(|e| e.to_string())
    }

    fn hold(&self, netns: &Path) -> Option<(Place, Hold)> {
        let place = Captor::place(self, netns)?;
        let namespace = Namespace::open(netns).ok()?;
        // Between the two looks another may have come.
        (namespace.place() == place).then(|| (place, Box::new(namespace) as Hold))
    }
}

/// Carries the traffic of pods.
pub trait Carrier: Send + Sync {
    /// Serves a pod by its sockets from now on, instead of those it had before.
    ///
    /// # Errors
    /// Why it cannot; dropping the sockets refuses what comes.
    fn add_pod(&self, pod: Arc<LocalPod>, sockets: PodSockets) -> Result<(), String>;
    /// Accepts nothing more for a pod.
    fn remove_pod(&self, id: &WorkloadId);
}
