//! The maps from userspace's side, and where they and everything else is pinned.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use fairlead_abi::{
    ABI_VERSION, CidrPrefix, Client, EndKey, Flow, ListenerKey, PodEntry, PodKey, PortKey,
    Settings, SocketState,
};
use fairlead_types::NetnsCookie;

use crate::error::{CaptureError, Step};
use crate::sys::bpf::{BpfMap, get_pinned};

/// Names of the maps in the object that are pinned; the programs' constants are not.
pub(crate) const PINNED_MAPS: &[&str] = &[
    "PODS",
    "LISTENERS",
    "FLOWS",
    "CLIENTS",
    "EXCLUDED_PORTS",
    "EXCLUDED_CIDRS",
    "SETTINGS",
    "COUNTERS",
    "SOCKETS",
    "AYA_LOGS",
];

/// The pin directory:
///
/// ```text
/// <pin_dir>/links/<hook>         links of the cgroup hooks, whatever version they run
/// <pin_dir>/steer/<cookie>       links of the enrolled pods
/// <pin_dir>/v<ABI>/maps/<name>   maps of this ABI version
/// <pin_dir>/v<ABI>/programs/…    programs of this ABI version
/// ```
#[derive(Clone, Debug)]
pub(crate) struct PinDir(pub(crate) PathBuf);

impl PinDir {
    pub(crate) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    pub(crate) fn steer(&self) -> PathBuf {
        self.0.join("steer")
    }

    pub(crate) fn steer_link(&self, cookie: NetnsCookie) -> PathBuf {
        self.steer().join(cookie.to_string())
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.0.join(format!("v{ABI_VERSION}"))
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub(crate) fn programs(&self) -> PathBuf {
        self.version().join("programs")
    }

    /// Directories of other ABI versions.
    pub(crate) fn other_versions(&self) -> io::Result<Vec<PathBuf>> {
        let own = self.version();
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let numbered = name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
            if numbered && path != own {
                others.push(path);
            }
        }
        Ok(others)
    }
}

/// All maps, open.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) pods: BpfMap<PodKey, PodEntry>,
    pub(crate) listeners: BpfMap<ListenerKey, u32>,
    pub(crate) flows: BpfMap<EndKey, Flow>,
    pub(crate) clients: BpfMap<EndKey, Client>,
    pub(crate) excluded_ports: BpfMap<PortKey, u8>,
    pub(crate) excluded_cidrs: BpfMap<CidrPrefix, u8>,
    pub(crate) settings: BpfMap<u32, Settings>,
    pub(crate) counters: BpfMap<u32, u64>,
    pub(crate) sockets: BpfMap<i32, SocketState>,
}

impl Maps {
    /// Opens the maps pinned in `dir`, which the loader made from this build's object or found
    /// pinned under this build's ABI version.
    pub(crate) fn open(dir: &Path) -> Result<Self, CaptureError> {
        let fd = |name: &str| -> Result<OwnedFd, CaptureError> {
            let path = dir.join(name);
            get_pinned(&path).step(|| format!("opening {}", path.display()))
        };
        // SAFETY: maps of this ABI version have keys and values of these types: both sides take
        // them from `fairlead-abi`.
        unsafe {
            Ok(Self {
                pods: BpfMap::from_fd(fd("PODS")?),
                listeners: BpfMap::from_fd(fd("LISTENERS")?),
                flows: BpfMap::from_fd(fd("FLOWS")?),
                clients: BpfMap::from_fd(fd("CLIENTS")?),
                excluded_ports: BpfMap::from_fd(fd("EXCLUDED_PORTS")?),
                excluded_cidrs: BpfMap::from_fd(fd("EXCLUDED_CIDRS")?),
                settings: BpfMap::from_fd(fd("SETTINGS")?),
                counters: BpfMap::from_fd(fd("COUNTERS")?),
                sockets: BpfMap::from_fd(fd("SOCKETS")?),
            })
        }
    }
}

/// The pods that a map of another ABI version knows. Only its keys are read: they are the one
/// thing that never changes.
pub(crate) fn pods_of_version(version: &Path) -> io::Result<Vec<PodKey>> {
    let fd = match get_pinned(&version.join("maps/PODS")) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // SAFETY: `keys` touches keys alone, and they are `u64` in every version.
    let pods: BpfMap<PodKey, u8> = unsafe { BpfMap::from_fd(fd) };
    pods.keys(MAX_PODS_READ)
}

/// Entries read of a map of pods at most.
pub(crate) const MAX_PODS_READ: usize = 65_536;
