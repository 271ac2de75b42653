//! `cgroup/getpeername4|6`: an application asks who is at the other end. `accept()` asks too.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use fairlead_abi::{Counter, SocketState, is_mapped, socket_kind};

use crate::connect::set_user_ip6;
use crate::maps::{count, storage_get};

/// The kernel knows no refusal here.
const DONE: i32 = 1;

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if let Some(peer) = peer(sa)
        && is_mapped(&peer.addr)
    {
        // SAFETY: `sa` is the program's context; both fields may be written here.
        unsafe {
            (&raw mut (*sa).user_ip4).write_volatile(peer.addr[3]);
            (&raw mut (*sa).user_port).write_volatile(u32::from(peer.port.to_be()));
        }
        count(Counter::PeerShown);
    }
    DONE
}

/// IPv6 sockets; an IPv4 peer is shown to them as `::ffff:a.b.c.d`, the form of the state itself.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if let Some(peer) = peer(sa) {
        set_user_ip6(sa, &peer.addr);
        // SAFETY: `sa` is the program's context; the field may be written here.
        unsafe { (&raw mut (*sa).user_port).write_volatile(u32::from(peer.port.to_be())) };
        count(Counter::PeerShown);
    }
    DONE
}

#[inline(always)]
fn peer(sa: *mut bpf_sock_addr) -> Option<&'static SocketState> {
    // SAFETY: `sa` is the program's context, and its socket is valid while it runs.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: valid while the program runs, which is as long as the reference is used.
    let state = storage_get(sk).map(|state| unsafe { &*state })?;
    match state.kind {
        socket_kind::OUTBOUND | socket_kind::ACCEPTED => Some(state),
        _ => None,
    }
}
