//! `sock_ops`: TCP sockets change state. What `connect` kept with a socket is published under the
//! connection's source before its SYN leaves, so the daemon cannot accept earlier than it can
//! look; and a delivery that reaches the application gets its real client attached.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_storage_get,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use fairlead_abi::{
    Addr, Client, Counter, EndKey, Flow, NodeFlowKey, SocketState, is_delivery_source, mapped,
    reservation, socket_kind,
};

use crate::ctx::{read, read_addr};
use crate::maps::{CLIENTS, FLOWS, NODE_FLOWS, SOCKETS, count, storage_delete, storage_get};
use crate::sock::AF_INET6;

const BPF_ANY: u64 = 0;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
const DONE: u32 = 1;

/// All TCP sockets under the cgroup.
#[sock_ops]
pub fn flow(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&ctx),
        BPF_SOCK_OPS_STATE_CB => withdraw(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => attach(&ctx),
        _ => {}
    }
    DONE
}

/// A connect leaves, and its source is known: a captured one tells the daemon where it wanted to
/// go, a delivery tells the application's side whom it speaks for.
#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    let Some(sk) = socket(ops) else { return };
    let Some(state) = storage_get(sk) else { return };
    // SAFETY: valid while the program runs; written only before this socket's own connect.
    let state = unsafe { &*state };
    let key = local_end(ops);
    // SAFETY: helpers without a precondition; `ops` is the program's context.
    let (socket, at) = unsafe { (bpf_get_socket_cookie(ops.cast()), bpf_ktime_get_ns()) };
    match state.kind {
        socket_kind::OUTBOUND => {
            let flow = Flow { dst: state.addr, socket, at, port: state.port, pad: [0; 3] };
            // The place reserved makes room for the entry itself.
            let _: Result<(), i32> = FLOWS.remove(reservation(socket));
            if FLOWS.insert(key, flow, BPF_ANY).is_err() {
                // Too late to stop the SYN. The daemon finds no entry and refuses.
                count(Counter::RefusedFlowsFull);
                debug!(ctx, "flow table full");
                return;
            }
            count(Counter::FlowPublished);
        }
        socket_kind::DELIVERY => {
            let client = Client {
                addr: state.addr,
                dst: remote_addr(ops),
                socket,
                at,
                port: state.port,
                dst_port: remote_port(ops),
                pad: 0,
            };
            let _: Result<(), i32> = CLIENTS.remove(reservation(socket));
            if CLIENTS.insert(key, client, BPF_ANY).is_err() {
                count(Counter::RefusedClientsFull);
                return;
            }
            count(Counter::ClientPublished);
        }
        socket_kind::NODE => {
            // One that cannot be kept is an ordinary connection to the pod.
            let _: Result<(), i32> = NODE_FLOWS.insert(node_flow(ops), socket, BPF_ANY);
        }
        _ => return,
    }
    // To hear of a handshake that fails; if it cannot be had, the sweep by age does it.
    let _: Result<(), i32> = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// A handshake ended. If it failed, nobody will take the entry; otherwise somebody does, even if
/// this socket is closed by then, and there is nothing more to hear of it.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    let kept = socket(ctx.ops).and_then(storage_get);
    // SAFETY: valid while the program runs.
    if kept.is_some_and(|state| unsafe { (*state).kind } == socket_kind::NODE) {
        // The entry lasts as long as the connection, and no longer: nobody else can have its ports
        // before.
        if new == BPF_TCP_CLOSE {
            let key = node_flow(ctx.ops);
            // SAFETY: `ops` is the program's context.
            let own = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
            if let Some(socket) = NODE_FLOWS.get_ptr(key) {
                // SAFETY: a live pointer into the map.
                if unsafe { *socket } == own {
                    let _: Result<(), i32> = NODE_FLOWS.remove(key);
                }
            }
        }
        return;
    }
    if old != BPF_TCP_SYN_SENT {
        return;
    }
    if new != BPF_TCP_CLOSE {
        let flags = ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG;
        let _: Result<(), i32> = ctx.set_cb_flags(flags as i32);
        return;
    }
    let ops = ctx.ops;
    let key = local_end(ops);
    // SAFETY: `ops` is the program's context.
    let own = unsafe { bpf_get_socket_cookie(ops.cast()) };
    // An entry may be replaced meanwhile, and then its cookie is another socket's.
    if let Some(flow) = FLOWS.get_ptr(key) {
        // SAFETY: a live pointer into the map.
        if unsafe { (*flow).socket } == own && FLOWS.remove(key).is_ok() {
            count(Counter::FlowWithdrawn);
        }
    }
    if let Some(client) = CLIENTS.get_ptr(key) {
        // SAFETY: a live pointer into the map.
        if unsafe { (*client).socket } == own && CLIENTS.remove(key).is_ok() {
            count(Counter::ClientWithdrawn);
        }
    }
}

/// A connection was accepted: if the daemon delivered it, the application will see the client.
#[inline(always)]
fn attach(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    let source = remote_addr(ops);
    if !is_delivery_source(&source) {
        return;
    }
    let Some(sk) = socket(ops) else { return };
    let here = local_end(ops);
    let key = EndKey { netns: here.netns, addr: source, port: remote_port(ops), pad: [0; 3] };
    let Some(client) = CLIENTS.get_ptr(key) else {
        count(Counter::ClientMiss);
        return;
    };
    // SAFETY: written before the SYN left, and consumed only here.
    let client = unsafe { *client };
    if client.dst_port != here.port || client.dst != here.addr {
        count(Counter::ClientMiss);
        return;
    }
    if CLIENTS.remove(key).is_err() {
        count(Counter::ClientMiss);
        return;
    }
    let mut state =
        SocketState { addr: client.addr, kind: socket_kind::ACCEPTED, port: client.port, pad: 0 };
    // SAFETY: the socket of the context; the value has the map's size.
    let kept = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast(),
            (&raw mut state).cast::<c_void>(),
            BPF_SK_STORAGE_GET_F_CREATE,
        )
    };
    if kept.is_null() {
        // The application will see the delivery source: less than the truth, but nothing false.
        count(Counter::ClientMiss);
        storage_delete(sk);
    } else {
        count(Counter::ClientAttached);
    }
}

#[inline(always)]
fn socket(ops: *mut bpf_sock_ops) -> Option<*mut bpf_sock> {
    // SAFETY: `ops` is the program's context; the verifier asks for the null check.
    let sk = unsafe { (*ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

#[inline(always)]
fn local_end(ops: *mut bpf_sock_ops) -> EndKey {
    // SAFETY: `ops` is the program's context.
    let (netns, port) =
        unsafe { (bpf_get_netns_cookie(ops.cast()), read!(ops => bpf_sock_ops, local_port)) };
    EndKey { netns, addr: local_addr(ops), port: port as u16, pad: [0; 3] }
}

#[inline(always)]
fn node_flow(ops: *mut bpf_sock_ops) -> NodeFlowKey {
    // SAFETY: `ops` is the program's context.
    let src_port = unsafe { read!(ops => bpf_sock_ops, local_port) } as u16;
    NodeFlowKey {
        src: local_addr(ops),
        dst: remote_addr(ops),
        src_port,
        dst_port: remote_port(ops),
        pad: 0,
    }
}

#[inline(always)]
fn remote_port(ops: *mut bpf_sock_ops) -> u16 {
    // SAFETY: `ops` is the program's context; the port lies in network order.
    u32::from_be(unsafe { read!(ops => bpf_sock_ops, remote_port) }) as u16
}

#[inline(always)]
fn is_v6(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: `ops` is the program's context.
    unsafe { read!(ops => bpf_sock_ops, family) == AF_INET6 }
}

#[inline(always)]
fn local_addr(ops: *mut bpf_sock_ops) -> Addr {
    // SAFETY: `ops` is the program's context.
    unsafe {
        if is_v6(ops) {
            read_addr!(ops => bpf_sock_ops, local_ip6)
        } else {
            mapped(read!(ops => bpf_sock_ops, local_ip4))
        }
    }
}

#[inline(always)]
fn remote_addr(ops: *mut bpf_sock_ops) -> Addr {
    // SAFETY: `ops` is the program's context.
    unsafe {
        if is_v6(ops) {
            read_addr!(ops => bpf_sock_ops, remote_ip6)
        } else {
            mapped(read!(ops => bpf_sock_ops, remote_ip4))
        }
    }
}
