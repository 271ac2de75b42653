//! What several hooks ask of a socket, and the hook that keeps the ways around TCP capture shut.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use aya_log_ebpf::debug;
use fairlead_abi::{Addr, Counter, mapped, pod_flags};

use crate::ctx::{read, read_addr};
use crate::maps::{PODS, count};

/// `SOCK_STREAM`.
pub const SOCK_STREAM: u32 = 1;
/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_DCCP: u32 = 33;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;

/// Whether a stream socket of this protocol is plain TCP.
#[inline(always)]
pub fn is_tcp(protocol: u32) -> bool {
    protocol == IPPROTO_TCP
}

/// The source address that the socket is bound to, unspecified if it is not.
#[inline(always)]
pub fn source(sk: *mut bpf_sock) -> Addr {
    // SAFETY: the caller passes the socket of its context.
    unsafe {
        if read!(sk => bpf_sock, family) == AF_INET6 {
            read_addr!(sk => bpf_sock, src_ip6)
        } else {
            mapped(read!(sk => bpf_sock, src_ip4))
        }
    }
}

/// `cgroup/sock_create`: an application of an enrolled pod opens a socket. SCTP and DCCP would pass
/// capture altogether. MPTCP would not, but no hook can show such a socket its peer, and towards an
/// excluded destination it could open paths of its own; programs that prefer it fall back to TCP
/// when it cannot be had.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the program's context.
    let protocol = unsafe { read!(ctx.sock => bpf_sock, protocol) };
    match protocol {
        IPPROTO_MPTCP | IPPROTO_SCTP | IPPROTO_DCCP => {}
        _ => return 1,
    }
    // SAFETY: the program's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock.cast()) };
    // SAFETY: entries are written whole by userspace.
    match unsafe { PODS.get(netns) } {
        Some(pod) if pod.flags & pod_flags::ENROLLED != 0 => {
            count(Counter::RefusedProtocol);
            debug!(&ctx, "refused a socket of protocol {}", protocol);
            0
        }
        _ => 1,
    }
}
