//! What capture has to be told.

use std::path::PathBuf;

use fairlead_types::WorkloadId;
use ipnet::IpNet;

/// What happens to TCP connections from a network namespace that nobody has told the daemon about
/// (a pod that starts faster than the news of it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownNetns {
    /// They pass. For hosts where other things than pods run below the cgroup root.
    #[default]
    Pass,
    /// They are refused until the pod is enrolled or exempted: no pod's first connection can
    /// escape. The host's own namespace always passes.
    Refuse,
}

/// Settings of [`crate::Capture::open`].
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// The cgroup v2 directory whose processes are captured: the root of the tree, or a subtree
    /// when several nodes share a kernel. The daemon itself must run below it.
    pub cgroup_root: PathBuf,
    /// The cgroup of all pods, so that pods on the host's network are told from the node itself,
    /// whose probes pass. `None`: where kubelet makes it below the root (`kubepods.slice` or
    /// `kubepods`).
    pub pods_cgroup: Option<PathBuf>,
    /// Where programs, maps and links are pinned; on a bpffs, made if it is missing. One daemon at
    /// a time owns it.
    pub pin_dir: PathBuf,
    /// Connections from unknown namespaces.
    pub unknown_netns: UnknownNetns,
    /// Captured connections that the daemon has not accepted yet, and deliveries that the
    /// application has not; beyond, connections are refused. Takes effect when the maps are made,
    /// not when they are taken over.
    pub max_flows: u32,
    /// Connections that one listener may hold unaccepted (the kernel caps it at `somaxconn`).
    pub listen_backlog: u32,
    /// Whether the eBPF programs log what they do. They contain no trace of it otherwise.
    pub diagnostics: bool,
}

/// Default of [`CaptureSettings::max_flows`].
pub const DEFAULT_MAX_FLOWS: u32 = 16_384;
/// Default of [`CaptureSettings::listen_backlog`].
pub const DEFAULT_LISTEN_BACKLOG: u32 = 4_096;
/// Where pins lie unless told otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/fairlead";

impl CaptureSettings {
    /// Settings for the cgroup tree at `cgroup_root`, with defaults for the rest.
    #[must_use]
    pub fn new(cgroup_root: PathBuf) -> Self {
        Self {
            cgroup_root,
            pods_cgroup: None,
            pin_dir: DEFAULT_PIN_DIR.into(),
            unknown_netns: UnknownNetns::default(),
            max_flows: DEFAULT_MAX_FLOWS,
            listen_backlog: DEFAULT_LISTEN_BACKLOG,
            diagnostics: false,
        }
    }
}

/// A pod to enrol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Its name.
    pub id: WorkloadId,
    /// Its network namespace (`/run/netns/x`, `/proc/1234/ns/net`).
    pub netns: PathBuf,
    /// Ports that it connects to past the mesh
    /// (`traffic.sidecar.istio.io/excludeOutboundPorts`).
    pub excluded_outbound_ports: Vec<u16>,
    /// Ranges that it connects to past the mesh
    /// (`traffic.sidecar.istio.io/excludeOutboundIPRanges`).
    pub excluded_outbound_ranges: Vec<IpNet>,
    /// Ports on which it is reached past the mesh
    /// (`traffic.sidecar.istio.io/excludeInboundPorts`).
    pub excluded_inbound_ports: Vec<u16>,
    /// If set, only connections to these ranges, or to the ports below, are captured
    /// (`traffic.sidecar.istio.io/includeOutboundIPRanges`).
    pub only_outbound_ranges: Option<Vec<IpNet>>,
    /// Ports that are captured besides those ranges
    /// (`traffic.sidecar.istio.io/includeOutboundPorts`).
    pub only_outbound_ports: Vec<u16>,
    /// If set, only these ports are captured inbound
    /// (`traffic.sidecar.istio.io/includeInboundPorts`).
    pub only_inbound_ports: Option<Vec<u16>>,
    /// Ports at which the node itself reaches the application: those of kubelet's probes.
    pub probe_ports: Vec<u16>,
}

impl PodSpec {
    /// A pod without exclusions.
    #[must_use]
    pub fn new(id: WorkloadId, netns: PathBuf) -> Self {
        Self {
            id,
            netns,
            excluded_outbound_ports: Vec::new(),
            excluded_outbound_ranges: Vec::new(),
            excluded_inbound_ports: Vec::new(),
            only_outbound_ranges: None,
            only_outbound_ports: Vec::new(),
            only_inbound_ports: None,
            probe_ports: Vec::new(),
        }
    }
}

/// What becomes of a pod that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It goes on without the mesh: its connections pass from now on, also where unknown
    /// namespaces are refused.
    Exempt,
    /// It is gone: nothing is remembered.
    Gone,
}
