//! The maps: one noun each. Userspace pins them, so they outlive the daemon.

use core::ptr::null_mut;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockHash};
use fairlead_abi::{
    CidrKey, Client, Counter, EndKey, Flow, ListenerKey, NodeFlowKey, PodEntry, PodKey, PortKey,
    Settings, SocketState,
};

/// Pods that one node may hold, enrolled or not.
const MAX_PODS: u32 = 4096;
/// Excluded ports over all pods.
const MAX_EXCLUDED_PORTS: u32 = 65_536;
/// Excluded ranges over all pods.
const MAX_EXCLUDED_CIDRS: u32 = 65_536;
/// Connections between the handshake and the daemon's `accept()`; userspace may set another bound.
const MAX_FLOWS: u32 = 16_384;
/// Deliveries between `connect()` and the handshake; userspace may set another bound.
const MAX_CLIENTS: u32 = 16_384;
/// Connections of the node's own processes that are remembered; beyond, the oldest is forgotten,
/// and a probe on it is treated like any other connection.
const MAX_NODE_FLOWS: u32 = 16_384;
/// `BPF_F_NO_PREALLOC`: memory only for what is there.
const ON_DEMAND: u32 = 1;

/// Network namespace cookie → the pod.
#[map]
pub static PODS: HashMap<PodKey, PodEntry> = HashMap::with_max_entries(MAX_PODS, 0);

/// Pod and role → the daemon's listening socket.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(MAX_PODS * 4, 0);

/// Source of a captured connection → what the application asked for.
#[map]
pub static FLOWS: HashMap<EndKey, Flow> = HashMap::with_max_entries(MAX_FLOWS, 0);

/// Source of a delivery → the real client.
#[map]
pub static CLIENTS: HashMap<EndKey, Client> = HashMap::with_max_entries(MAX_CLIENTS, 0);

/// Connections that the node itself has open → the cookie of their socket.
#[map]
pub static NODE_FLOWS: LruHashMap<NodeFlowKey, u64> =
    LruHashMap::with_max_entries(MAX_NODE_FLOWS, 0);

/// Ports that are not captured, or the only ones that are.
#[map]
pub static EXCLUDED_PORTS: HashMap<PortKey, u8> =
    HashMap::with_max_entries(MAX_EXCLUDED_PORTS, ON_DEMAND);

/// Destination ranges that are not captured, or the only ones that are.
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<CidrKey, u8> =
    LpmTrie::with_max_entries(MAX_EXCLUDED_CIDRS, ON_DEMAND);

/// The settings, one entry.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Outcomes, by [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// What the application's socket has to show as its peer; goes away with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Counts one outcome.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a pointer into this CPU's slot of a per-CPU array, valid while the program runs.
        unsafe { *cell += 1 };
    }
}

/// What is kept with the socket.
#[inline(always)]
pub fn storage_get(sk: *mut bpf_sock) -> Option<*mut SocketState> {
    // SAFETY: a map and the socket of the caller's context; without the create flag no value is
    // read.
    let kept = unsafe {
        bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), sk.cast(), null_mut(), 0)
    }
    .cast::<SocketState>();
    if kept.is_null() { None } else { Some(kept) }
}

/// Forgets what is kept with the socket.
#[inline(always)]
pub fn storage_delete(sk: *mut bpf_sock) {
    // SAFETY: a map and the socket of the caller's context. Nothing kept is no failure.
    let _: i64 =
        unsafe { bpf_sk_storage_delete((&raw const SOCKETS).cast_mut().cast(), sk.cast()) };
}
