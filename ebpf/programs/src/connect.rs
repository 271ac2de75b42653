//! `cgroup/connect4|6`: an application opens a TCP connection. For an enrolled pod the destination
//! is kept with the socket and replaced by the daemon's listener inside the same namespace.

use core::ffi::c_void;

use aya_ebpf::bindings::{SOL_SOCKET, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{
    bpf_bind, bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_set_retval, bpf_setsockopt,
    bpf_sk_release, bpf_sk_storage_get,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use fairlead_abi::{
    Addr, CAPTURE_FIRST_V4, CAPTURE_FIRST_V6, CAPTURE_SOURCES, CIDR_ALL_BITS, CidrKey, Client,
    Counter, Flow, ListenerKey, PortKey, SocketState, direction, is_delivery_source, is_loopback,
    is_mapped, mapped, pod_flags, range, reservation, role, socket_kind,
};

use crate::ctx::{read, read_addr};
use crate::maps::{
    CLIENTS, EXCLUDED_CIDRS, EXCLUDED_PORTS, FLOWS, LISTENERS, PODS, SETTINGS, SOCKETS, count,
    storage_delete, storage_get,
};
use crate::sock::{self, AF_INET, AF_INET6, SOCK_STREAM};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const SO_BINDTOIFINDEX: i32 = 62;
const BPF_ANY: u64 = 0;
/// Levels of cgroups that are looked at; a process that is deeper is not taken for the node itself.
const MAX_CGROUP_DEPTH: i32 = 16;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
/// `127.0.0.1` as it lies in memory.
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();

/// Where a connection goes.
enum Verdict {
    /// Where the application wants it.
    Pass,
    /// Where the daemon wants it, with what it keeps with the socket.
    Own,
    /// To the daemon's listener, by its port.
    Capture(u16),
    /// Nowhere.
    Refuse(Counter),
}

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: `sa` is the program's context.
    let dst = mapped(unsafe { read!(sa => bpf_sock_addr, user_ip4) });
    match decide(sa, &dst, role::OUTBOUND_V4) {
        Verdict::Pass => pass(sa),
        Verdict::Own => ALLOW,
        Verdict::Capture(port) => {
            debug!(&ctx, "captured: listener {}", port);
            // SAFETY: `sa` is the program's context; both fields may be written here.
            unsafe {
                (&raw mut (*sa).user_ip4).write_volatile(LOOPBACK_V4);
                (&raw mut (*sa).user_port).write_volatile(u32::from(port.to_be()));
            }
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(&ctx, reason),
    }
}

/// IPv6 sockets, which may also speak IPv4 (`::ffff:a.b.c.d`).
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: `sa` is the program's context.
    let dst = unsafe { read_addr!(sa => bpf_sock_addr, user_ip6) };
    let v4 = is_mapped(&dst);
    let role = if v4 { role::OUTBOUND_V4 } else { role::OUTBOUND_V6 };
    match decide(sa, &dst, role) {
        Verdict::Pass => pass(sa),
        Verdict::Own => ALLOW,
        Verdict::Capture(port) => {
            debug!(&ctx, "captured: listener {}", port);
            let to = if v4 { mapped(LOOPBACK_V4) } else { [0, 0, 0, 1_u32.to_be()] };
            set_user_ip6(sa, &to);
            // SAFETY: `sa` is the program's context; the field may be written here.
            unsafe { (&raw mut (*sa).user_port).write_volatile(u32::from(port.to_be())) };
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(&ctx, reason),
    }
}

#[inline(always)]
fn decide(sa: *mut bpf_sock_addr, dst: &Addr, role: u32) -> Verdict {
    // SAFETY: `sa` is the program's context.
    let (kind, protocol) =
        unsafe { (read!(sa => bpf_sock_addr, type_), read!(sa => bpf_sock_addr, protocol)) };
    if kind != SOCK_STREAM {
        // UDP and raw sockets are not carried.
        return Verdict::Pass;
    }
    let Some(settings) = SETTINGS.get(0) else {
        return Verdict::Refuse(Counter::RefusedNoSettings);
    };
    // SAFETY: a helper without a precondition; `sa` is the program's context.
    let netns = unsafe { bpf_get_netns_cookie(sa.cast()) };
    // SAFETY: `sa` is the program's context, and its socket is valid while it runs.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    // The daemon's sockets are known by what it wrote into their storage, which nobody else can:
    // its process id would outlive it, and the next process that gets it would pass.
    if let Some(verdict) = from_daemon(sa, sk) {
        return verdict;
    }
    if netns == settings.host_netns {
        let node = !sk.is_null() && sock::is_tcp(protocol) && is_node(settings.pods_cgroup);
        return if node && mark_as_node(sk) { Verdict::Own } else { Verdict::Pass };
    }
    // SAFETY: entries are written whole by userspace; a concurrent replacement can at worst show
    // the old or the new state of this pod.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        if settings.refuse_unknown == 0 || is_loopback(dst) {
            return Verdict::Pass;
        }
        return Verdict::Refuse(Counter::RefusedUnknownNetns);
    };
    let flags = pod.flags;
    if flags & pod_flags::ENROLLED == 0 {
        return Verdict::Pass;
    }
    if sk.is_null() || !sock::is_tcp(protocol) {
        return Verdict::Refuse(Counter::RefusedProtocol);
    }
    if is_delivery_source(&sock::source(sk)) {
        return Verdict::Refuse(Counter::RefusedForgedSource);
    }
    if is_loopback(dst) {
        count(Counter::PassedLoopback);
        return Verdict::Pass;
    }
    // SAFETY: `sa` is the program's context.
    let port = u16::from_be(unsafe { read!(sa => bpf_sock_addr, user_port) } as u16);
    if excluded(netns, flags, dst, port) {
        count(Counter::PassedExcludedOutbound);
        return Verdict::Pass;
    }
    let Some(listener) = listener_port(netns, role) else {
        return Verdict::Refuse(Counter::RefusedNoOutboundListener);
    };
    // A socket bound to the pod's device would look for loopback there.
    // SAFETY: `sk` is valid while the program runs.
    if unsafe { read!(sk => bpf_sock, bound_dev_if) } != 0 && !unbind_device(sa) {
        return Verdict::Refuse(Counter::RefusedBoundDevice);
    }
    if !remember(sk, dst, port) {
        return Verdict::Refuse(Counter::RefusedNoMemory);
    }
    // Once the SYN is under way nothing can refuse any more, so the place is taken now.
    // SAFETY: helpers without a precondition; `sa` is the program's context.
    let (socket, at) = unsafe { (bpf_get_socket_cookie(sa.cast()), bpf_ktime_get_ns()) };
    let place = Flow { dst: [0; 4], socket, at, port: 0, pad: [0; 3] };
    if FLOWS.insert(reservation(socket), place, BPF_ANY).is_err() {
        return Verdict::Refuse(Counter::RefusedFlowsFull);
    }
    // Last: a socket that is refused before stays free to connect elsewhere.
    if !take_source(sa, sk, role, flags) {
        return Verdict::Refuse(Counter::RefusedNoSource);
    }
    count(Counter::CapturedOutbound);
    Verdict::Capture(listener)
}

/// What the daemon's own connections get: never captured; a delivery has its place reserved, or is
/// refused. `None`: the socket is not the daemon's.
#[inline(always)]
fn from_daemon(sa: *mut bpf_sock_addr, sk: *mut bpf_sock) -> Option<Verdict> {
    if sk.is_null() {
        return None;
    }
    let state = storage_get(sk)?;
    // SAFETY: valid while the program runs; the daemon wrote it before it called connect.
    match unsafe { (*state).kind } {
        socket_kind::DELIVERY => {}
        socket_kind::CARRIED => return Some(Verdict::Own),
        _ => return None,
    }
    // SAFETY: helpers without a precondition; `sa` is the program's context.
    let (socket, at) = unsafe { (bpf_get_socket_cookie(sa.cast()), bpf_ktime_get_ns()) };
    let place = Client { addr: [0; 4], dst: [0; 4], socket, at, port: 0, dst_port: 0, pad: 0 };
    if CLIENTS.insert(reservation(socket), place, BPF_ANY).is_err() {
        return Some(Verdict::Refuse(Counter::RefusedClientsFull));
    }
    Some(Verdict::Own)
}

/// Whether the process is the node's own: in the host's network namespace, but in no pod (those on
/// the host's network are there too).
#[inline(always)]
fn is_node(pods_cgroup: u64) -> bool {
    if pods_cgroup == 0 {
        return false;
    }
    let mut level = 1;
    while level < MAX_CGROUP_DEPTH {
        // SAFETY: no precondition.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            // Its own cgroup was the one before.
            return true;
        }
        if id == pods_cgroup {
            return false;
        }
        level += 1;
    }
    false
}

#[inline(always)]
fn mark_as_node(sk: *mut bpf_sock) -> bool {
    keep(sk, SocketState { addr: [0; 4], kind: socket_kind::NODE, port: 0, pad: 0 })
}

#[inline(always)]
fn excluded(netns: u64, flags: u32, dst: &Addr, port: u16) -> bool {
    let listed =
        |direction| EXCLUDED_PORTS.get_ptr(PortKey { netns, port, direction, pad: 0 }).is_some();
    if flags & pod_flags::HAS_OUTBOUND_PORTS != 0 && listed(direction::OUTBOUND) {
        return true;
    }
    if flags & pod_flags::HAS_CIDRS != 0 {
        let netns = [netns as u32, (netns >> 32) as u32];
        let key = Key::new(CIDR_ALL_BITS, CidrKey { netns, addr: *dst });
        if let Some(range) = EXCLUDED_CIDRS.get(key) {
            return *range == range::EXCLUDED;
        }
    }
    flags & pod_flags::ONLY_OUTBOUND != 0 && !listed(direction::INCLUDED_OUTBOUND)
}

/// The port of the daemon's listener, from the listener itself: it is gone when the daemon is.
#[inline(always)]
fn listener_port(netns: u64, role: u32) -> Option<u16> {
    let key = ListenerKey { netns, role, pad: 0 };
    // SAFETY: map and key are valid; the socket returned is released below on the only path.
    let sk = unsafe {
        bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const key).cast())
    }
    .cast::<bpf_sock>();
    if sk.is_null() {
        return None;
    }
    // SAFETY: not null, and a reference is held.
    let port = unsafe {
        let port = read!(sk => bpf_sock, src_port);
        bpf_sk_release(sk.cast());
        port
    };
    Some(port as u16)
}

#[inline(always)]
fn remember(sk: *mut bpf_sock, dst: &Addr, port: u16) -> bool {
    keep(sk, SocketState { addr: *dst, kind: socket_kind::OUTBOUND, port, pad: 0 })
}

/// Keeps something with a socket.
#[inline(always)]
fn keep(sk: *mut bpf_sock, mut state: SocketState) -> bool {
    // SAFETY: the socket of the context; the value has the map's size.
    let kept = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast(),
            (&raw mut state).cast::<c_void>(),
            BPF_SK_STORAGE_GET_F_CREATE,
        )
    }
    .cast::<SocketState>();
    if kept.is_null() {
        return false;
    }
    // The socket may carry the state of an earlier attempt.
    // SAFETY: not null, valid while the program runs; nobody else connects this socket now.
    unsafe { *kept = state };
    true
}

#[inline(always)]
fn unbind_device(sa: *mut bpf_sock_addr) -> bool {
    let mut none = 0_u32;
    // SAFETY: `sa` is the program's context; the option takes four bytes.
    unsafe {
        bpf_setsockopt(
            sa.cast(),
            SOL_SOCKET as i32,
            SO_BINDTOIFINDEX,
            (&raw mut none).cast(),
            size_of::<u32>() as i32,
        ) == 0
    }
}

/// Binds a socket that the application left free to one of several sources: from the one that the
/// kernel would take, only an ephemeral range of connections to the listener could be open.
#[inline(always)]
fn take_source(sa: *mut bpf_sock_addr, sk: *mut bpf_sock, role: u32, flags: u32) -> bool {
    let v4 = role == role::OUTBOUND_V4;
    if !v4 && flags & pod_flags::V6_SOURCES == 0 {
        return true;
    }
    // SAFETY: `sk` is valid while the program runs.
    if unsafe { read!(sk => bpf_sock, src_port) } != 0 {
        return true;
    }
    let bound = sock::source(sk);
    if bound[0] | bound[1] | bound[3] != 0 {
        return true;
    }
    // SAFETY: no precondition.
    let turn = unsafe { bpf_get_prandom_u32() } & (CAPTURE_SOURCES - 1);
    let source = if v4 {
        mapped((CAPTURE_FIRST_V4 + turn).to_be())
    } else {
        [0, 0, 0, (CAPTURE_FIRST_V6 + turn).to_be()]
    };
    // SAFETY: `sa` is the program's context; the addresses are whole and their sizes given.
    unsafe {
        if read!(sk => bpf_sock, family) == AF_INET6 {
            let mut addr = sockaddr_in6 {
                sin6_family: AF_INET6 as u16,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: source,
                sin6_scope_id: 0,
            };
            bpf_bind(sa, (&raw mut addr).cast(), size_of::<sockaddr_in6>() as i32) == 0
        } else {
            let mut addr = sockaddr_in {
                sin_family: AF_INET as u16,
                sin_port: 0,
                sin_addr: source[3],
                pad: [0; 2],
            };
            bpf_bind(sa, (&raw mut addr).cast(), size_of::<sockaddr_in>() as i32) == 0
        }
    }
}

/// As the kernel has it.
#[repr(C)]
struct sockaddr_in {
    sin_family: u16,
    sin_port: u16,
    sin_addr: u32,
    pad: [u32; 2],
}

/// As the kernel has it.
#[repr(C)]
struct sockaddr_in6 {
    sin6_family: u16,
    sin6_port: u16,
    sin6_flowinfo: u32,
    sin6_addr: Addr,
    sin6_scope_id: u32,
}

/// Lets a connection go where it wants; what an earlier attempt left with the socket goes.
#[inline(always)]
fn pass(sa: *mut bpf_sock_addr) -> i32 {
    // SAFETY: `sa` is the program's context, and its socket is valid while it runs.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    if !sk.is_null() {
        storage_delete(sk);
    }
    ALLOW
}

#[inline(always)]
fn refuse(ctx: &SockAddrContext, reason: Counter) -> i32 {
    count(reason);
    debug!(ctx, "refused: counter {}", reason as u32);
    // SAFETY: no precondition. Without it the application would see EPERM.
    let _: i32 = unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

/// Replaces the IPv6 address of the call.
#[inline(always)]
pub fn set_user_ip6(sa: *mut bpf_sock_addr, addr: &Addr) {
    // SAFETY: `sa` is the program's context; the hooks that call this may write the field.
    unsafe {
        let words = (&raw mut (*sa).user_ip6).cast::<u32>();
        words.write_volatile(addr[0]);
        words.add(1).write_volatile(addr[1]);
        words.add(2).write_volatile(addr[2]);
        words.add(3).write_volatile(addr[3]);
    }
}
