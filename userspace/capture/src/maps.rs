//! The maps from userspace's side, and where they and everything else is pinned.

use std::io;
use std::path::{Path, PathBuf};

use aya::Pod;
use fairlead_abi::{
    ABI_VERSION, CidrPrefix, Client, EndKey, Flow, ListenerKey, PodEntry, PodKey, PortKey,
    Settings, SocketState,
};
use fairlead_types::NetnsCookie;

use crate::error::{CaptureError, Step};
use crate::sys::bpf::{BpfMap, get_pinned, keys_of};

/// Names of the maps in the object that are pinned; the programs' constants are not.
pub(crate) const PINNED_MAPS: &[&str] = &[
    "PODS",
    "LISTENERS",
    "FLOWS",
    "CLIENTS",
    "NODE_FLOWS",
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
        Ok(Self {
            pods: open(dir, "PODS")?,
            listeners: open(dir, "LISTENERS")?,
            flows: open(dir, "FLOWS")?,
            clients: open(dir, "CLIENTS")?,
            excluded_ports: open(dir, "EXCLUDED_PORTS")?,
            excluded_cidrs: open(dir, "EXCLUDED_CIDRS")?,
            settings: open(dir, "SETTINGS")?,
            counters: open(dir, "COUNTERS")?,
            sockets: open(dir, "SOCKETS")?,
        })
    }
}

fn open<K: Pod, V: Pod>(dir: &Path, name: &str) -> Result<BpfMap<K, V>, CaptureError> {
    let path = dir.join(name);
    get_pinned(&path).and_then(BpfMap::new).step(|| format!("opening {}", path.display()))
}

/// The pods that a map of another ABI version knows. Only its keys are read: they are the one
/// thing that never changes.
pub(crate) fn pods_of_version(version: &Path) -> io::Result<Vec<PodKey>> {
    match get_pinned(&version.join("maps/PODS")) {
        Ok(fd) => keys_of(fd, MAX_PODS_READ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Entries read of a map of pods at most.
pub(crate) const MAX_PODS_READ: usize = 65_536;
