//! What the kernel offers, in words, and what the daemon gives up once it is set up.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

use crate::error::{CaptureError, Step};
use crate::sys::caps;

/// One kernel feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether the kernel has it.
    pub present: bool,
    /// Whether capture can do without.
    pub required: bool,
    /// What it means that it is missing.
    pub without: &'static str,
}

enum Probe {
    Program(ProgramType),
    Map(MapType),
    File(&'static str),
}

const PROBES: &[(&str, Probe, bool, &str)] = &[
    (
        "cgroup socket address hooks",
        Probe::Program(ProgramType::CgroupSockAddr),
        true,
        "no connection can be captured: the daemon does not start (Linux 4.17, CONFIG_CGROUP_BPF)",
    ),
    (
        "cgroup socket hooks",
        Probe::Program(ProgramType::CgroupSock),
        true,
        "MPTCP and SCTP would pass the mesh: the daemon does not start (Linux 4.10)",
    ),
    (
        "sock_ops",
        Probe::Program(ProgramType::SockOps),
        true,
        "original destinations cannot be handed over: the daemon does not start (Linux 4.13)",
    ),
    (
        "sk_lookup",
        Probe::Program(ProgramType::SkLookup),
        true,
        "inbound connections cannot be captured: the daemon does not start (Linux 5.9)",
    ),
    (
        "socket storage",
        Probe::Map(MapType::SkStorage),
        true,
        "addresses cannot be kept with sockets: the daemon does not start (Linux 5.2)",
    ),
    (
        "sockhash",
        Probe::Map(MapType::SockHash),
        true,
        "listeners cannot be found by pod: the daemon does not start (Linux 4.18)",
    ),
    (
        "LPM trie",
        Probe::Map(MapType::LpmTrie),
        true,
        "destination ranges cannot be excluded: the daemon does not start (Linux 4.11)",
    ),
    (
        "ring buffer",
        Probe::Map(MapType::RingBuf),
        true,
        "diagnostics have nowhere to go: the daemon does not start (Linux 5.8)",
    ),
    (
        "sk_msg",
        Probe::Program(ProgramType::SkMsg),
        false,
        "connections between two pods of this node go through the daemon byte by byte (Linux 4.17)",
    ),
    (
        "kernel type information",
        Probe::File("/sys/kernel/btf/vmlinux"),
        false,
        "connections between two pods of this node go through the daemon byte by byte \
         (CONFIG_DEBUG_INFO_BTF)",
    ),
];

/// What the kernel has of all that Fairlead uses.
#[must_use]
pub fn features() -> Vec<Feature> {
    PROBES
        .iter()
        .map(|(name, probe, required, without)| {
            let present = match probe {
                Probe::Program(kind) => is_program_supported(*kind).unwrap_or(false),
                Probe::Map(kind) => is_map_supported(*kind).unwrap_or(false),
                Probe::File(path) => std::path::Path::new(path).exists(),
            };
            Feature { name, present, required: *required, without }
        })
        .collect()
}

/// Gives up every capability but the two that enrolment and the data plane go on needing:
/// `CAP_SYS_ADMIN` (entering network namespaces; it includes `CAP_BPF` and `CAP_PERFMON`) and
/// `CAP_NET_ADMIN` (attaching network programs, loopback addresses). Call it before threads are
/// started: the kernel keeps capabilities per thread. Namespaces below `/proc/<pid>` of processes
/// that have more can then not be opened; those below `/run/netns` can. With `find_pods`,
/// `CAP_SYS_PTRACE` stays too, and both can.
///
/// # Errors
/// The kernel refused.
pub fn drop_capabilities(find_pods: bool) -> Result<(), CaptureError> {
    let kept = if find_pods { caps::TO_FIND_PODS } else { caps::NEEDED };
    caps::keep_only(kept).step(|| "dropping capabilities".into())
}
