//! `sk_lookup`, attached to each enrolled pod's network namespace: a TCP connection arrives. From
//! outside the pod it goes to the daemon's inbound listener, whatever its port.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use fairlead_abi::{
    Addr, Counter, ListenerKey, NodeFlowKey, POD_PLACEHOLDER, PortKey, direction,
    is_delivery_source, is_loopback, mapped, pod_flags, role,
};

use crate::ctx::{read, read_addr};
use crate::maps::{EXCLUDED_PORTS, LISTENERS, NODE_FLOWS, PODS, count};
use crate::sock::AF_INET6;

const IPPROTO_TCP: u32 = 6;

/// The cookie of the namespace that this instance of the program serves: the hook itself is not
/// told, so userspace loads one instance per pod.
#[unsafe(no_mangle)]
static POD_NETNS: Global<u64> = Global::new(POD_PLACEHOLDER);

/// New connections into the pod.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: `lookup` is the program's context.
    if unsafe { read!(lookup => bpf_sk_lookup, protocol) } != IPPROTO_TCP {
        return SK_PASS;
    }
    let netns = POD_NETNS.load();
    // SAFETY: entries are written whole by userspace.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        // Joining or leaving: the listener says whether there is a daemon to decide.
        return to_daemon(&ctx, netns);
    };
    // SAFETY: `lookup` is the program's context.
    let port = unsafe { read!(lookup => bpf_sk_lookup, local_port) } as u16;
    let (source, target) = (remote(lookup), local(lookup));
    // From inside the pod. (What comes from outside cannot have a loopback address at either end:
    // the kernel drops it as martian.)
    let inside = is_loopback(&source)
        || is_loopback(&target)
        || is_delivery_source(&source)
        || source == target;
    if inside {
        // The listeners of the other family may have the same ports.
        if port == (if is_v6(lookup) { pod.inbound_v6 } else { pod.inbound_v4 }) {
            count(Counter::RefusedDirectInbound);
            return SK_DROP;
        }
        return SK_PASS;
    }
    let flags = pod.flags;
    let listed =
        |direction| EXCLUDED_PORTS.get_ptr(PortKey { netns, port, direction, pad: 0 }).is_some();
    if (flags & pod_flags::HAS_INBOUND_PORTS != 0 && listed(direction::INBOUND))
        || (flags & pod_flags::ONLY_INBOUND != 0 && !listed(direction::INCLUDED_INBOUND))
    {
        count(Counter::PassedExcludedInbound);
        return SK_PASS;
    }
    // A probe of the kubelet goes to the application itself, so that it says of it what it would
    // say without a mesh, also while no daemon runs. It is known by its socket, which the kernel saw
    // the node's own process connect, and not by an address that others could take.
    if flags & pod_flags::HAS_PROBE_PORTS != 0 && listed(direction::PROBE) {
        // SAFETY: `lookup` is the program's context; the port lies in network order.
        let src_port = u16::from_be(unsafe { read!(lookup => bpf_sk_lookup, remote_port) } as u16);
        let key = NodeFlowKey { src: source, dst: target, src_port, dst_port: port, pad: 0 };
        if NODE_FLOWS.get_ptr(key).is_some() {
            count(Counter::PassedProbe);
            return SK_PASS;
        }
    }
    to_daemon(&ctx, netns)
}

#[inline(always)]
fn to_daemon(ctx: &SkLookupContext, netns: u64) -> u32 {
    let role = if is_v6(ctx.lookup) { role::INBOUND_V6 } else { role::INBOUND_V4 };
    let key = ListenerKey { netns, role, pad: 0 };
    // SAFETY: the context outlives the call; the copy is the same pointer.
    match LISTENERS.redirect_sk_lookup(SkLookupContext::new(ctx.lookup), key, 0) {
        Ok(()) => {
            count(Counter::CapturedInbound);
            SK_PASS
        }
        Err(_) => {
            count(Counter::RefusedNoInboundListener);
            SK_DROP
        }
    }
}

#[inline(always)]
fn is_v6(lookup: *mut bpf_sk_lookup) -> bool {
    // SAFETY: `lookup` is the program's context.
    unsafe { read!(lookup => bpf_sk_lookup, family) == AF_INET6 }
}

#[inline(always)]
fn local(lookup: *mut bpf_sk_lookup) -> Addr {
    // SAFETY: `lookup` is the program's context.
    unsafe {
        if is_v6(lookup) {
            read_addr!(lookup => bpf_sk_lookup, local_ip6)
        } else {
            mapped(read!(lookup => bpf_sk_lookup, local_ip4))
        }
    }
}

#[inline(always)]
fn remote(lookup: *mut bpf_sk_lookup) -> Addr {
    // SAFETY: `lookup` is the program's context.
    unsafe {
        if is_v6(lookup) {
            read_addr!(lookup => bpf_sk_lookup, remote_ip6)
        } else {
            mapped(read!(lookup => bpf_sk_lookup, remote_ip4))
        }
    }
}
