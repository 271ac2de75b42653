//! `cgroup/getsockname4|6`: an application asks for its own end of a connection. A captured one
//! leaves from loopback; what it would have left from without the mesh is shown instead.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use fairlead_abi::{Addr, is_capture_source, is_loopback, is_mapped, mapped, socket_kind};

use crate::connect::set_user_ip6;
use crate::ctx::{read, read_addr};
use crate::maps::{PODS, storage_get};

/// The kernel knows no refusal here.
const DONE: i32 = 1;

/// IPv4 sockets.
#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: `sa` is the program's context.
    let shown = mapped(unsafe { read!(sa => bpf_sock_addr, user_ip4) });
    if let Some(addr) = address(sa, &shown) {
        // SAFETY: `sa` is the program's context; the field may be written here.
        unsafe { (&raw mut (*sa).user_ip4).write_volatile(addr[3]) };
    }
    DONE
}

/// IPv6 sockets, which may also speak IPv4.
#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: `sa` is the program's context.
    let shown = unsafe { read_addr!(sa => bpf_sock_addr, user_ip6) };
    if let Some(addr) = address(sa, &shown) {
        set_user_ip6(sa, &addr);
    }
    DONE
}

/// What to show in place of `shown`: the pod's address, if the socket is a captured one whose
/// source capture chose.
#[inline(always)]
fn address(sa: *mut bpf_sock_addr, shown: &Addr) -> Option<Addr> {
    if !is_loopback(shown) && !is_capture_source(shown) {
        return None;
    }
    // SAFETY: `sa` is the program's context, and its socket is valid while it runs.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: valid while the program runs.
    if unsafe { (*storage_get(sk)?).kind } != socket_kind::OUTBOUND {
        return None;
    }
    // SAFETY: `sa` is the program's context; entries are written whole by userspace.
    let pod = unsafe { PODS.get(bpf_get_netns_cookie(sa.cast()))? };
    let addr = if is_mapped(shown) { mapped(pod.addr_v4) } else { pod.addr_v6 };
    // A pod without an address of the family shows loopback, as it is.
    if addr[0] | addr[1] | addr[3] == 0 { None } else { Some(addr) }
}
