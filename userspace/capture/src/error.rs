//! Why capture cannot be had.

use std::io;
use std::path::PathBuf;

use fairlead_types::WorkloadId;

/// Why capture could not be set up or a pod not enrolled. Whatever was captured before stays
/// captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The cgroup root is not a cgroup v2 directory.
    #[error("{0} is not a cgroup v2 directory")]
    NotCgroup2(PathBuf),
    /// The daemon's own sockets would escape its programs.
    #[error(
        "this process runs in cgroup {own}, outside the captured tree {root}: start it below \
         (write its pid to a cgroup.procs there)"
    )]
    OutsideCgroup {
        /// Where the process is.
        own: PathBuf,
        /// Where it has to be.
        root: PathBuf,
    },
    /// The pin directory cannot hold pins.
    #[error("{0} is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)")]
    NotBpffs(PathBuf),
    /// Another daemon owns the pins.
    #[error("another daemon uses the pins at {0}")]
    InUse(PathBuf),
    /// The kernel refused the programs; the text is its verifier's.
    #[error("loading the eBPF programs: {0}")]
    Load(String),
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// The namespace already belongs to another pod.
    #[error("the network namespace of {pod} is enrolled as {other}")]
    SharedNetns {
        /// The pod to enrol.
        pod: WorkloadId,
        /// The pod that has the namespace.
        other: WorkloadId,
    },
    /// A namespace that must not be captured.
    #[error("{0} lives in the host's network namespace, which is never captured")]
    HostNetns(WorkloadId),
    /// Nobody of that name is enrolled.
    #[error("{0} is not enrolled")]
    NotEnrolled(WorkloadId),
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, CaptureError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, CaptureError> {
        self.map_err(|source| CaptureError::Step { step: step(), source })
    }
}
