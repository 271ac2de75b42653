//! Map keys and values shared by the eBPF programs and userspace.
//!
//! Every type is `repr(C)` without implicit padding (checked below at compile time), because the
//! kernel compares keys byte for byte. Addresses are 16 bytes in IPv6 form: an IPv4 address is
//! written as `::ffff:a.b.c.d`, so one key serves both families and a dual-stack socket meets the
//! same entry as an IPv4 one. Ports are in host byte order.

#![no_std]

mod addr;
mod counter;

pub use addr::*;
pub use counter::Counter;

/// The version of everything in this crate. Userspace and programs with different numbers never
/// share a map: bump it with every change of a layout, a map's type or the meaning of a field.
pub const ABI_VERSION: u32 = 3;

/// What the object holds in place of the cookie of the pod that `steer` serves. Userspace replaces
/// the bytes before it loads an instance; no namespace has this cookie.
pub const POD_PLACEHOLDER: u64 = 0xfa1e_1ead_5ee2_70d5;

/// Key of `PODS`, and of nothing else: it must stay a bare `u64` in every ABI version, because a
/// newer daemon reads the keys of an older one's map to refuse their traffic until it knows better.
pub type PodKey = u64;

/// What a pod's entry asks for.
pub mod pod_flags {
    /// Traffic is captured: to the listeners, or refused if there are none.
    pub const ENROLLED: u32 = 1;
    /// The pod is known and not enrolled: its traffic passes whatever `unknown_netns` says.
    pub const PASS: u32 = 2;
    /// `EXCLUDED_CIDRS` has entries for this pod.
    pub const HAS_CIDRS: u32 = 4;
    /// `EXCLUDED_PORTS` has outbound entries for this pod.
    pub const HAS_OUTBOUND_PORTS: u32 = 8;
    /// `EXCLUDED_PORTS` has inbound entries for this pod.
    pub const HAS_INBOUND_PORTS: u32 = 16;
    /// The pod's loopback has the IPv6 sources of captured connections.
    pub const V6_SOURCES: u32 = 32;
    /// `EXCLUDED_PORTS` has ports of this pod that its node itself may reach.
    pub const HAS_PROBE_PORTS: u32 = 64;
    /// Outbound, only what `EXCLUDED_CIDRS` or `EXCLUDED_PORTS` include is captured.
    pub const ONLY_OUTBOUND: u32 = 128;
    /// Inbound, only the ports that `EXCLUDED_PORTS` includes are captured.
    pub const ONLY_INBOUND: u32 = 256;
}

/// Value of `PODS`: one pod, by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodEntry {
    /// [`pod_flags`].
    pub flags: u32,
    /// Port of the inbound IPv4 listener: nobody may connect to it but by steering.
    pub inbound_v4: u16,
    /// Port of the inbound IPv6 listener.
    pub inbound_v6: u16,
    /// Which build of the programs the pod's own one is of; userspace's.
    pub build: u64,
    /// What captured sockets show as their own address: the pod's, or unspecified.
    pub addr_v6: Addr,
    /// The same for IPv4, as it lies in memory.
    pub addr_v4: u32,
    /// Zero.
    pub pad: u32,
}

/// Which listener of a pod.
pub mod role {
    /// `connect4` sends here.
    pub const OUTBOUND_V4: u32 = 0;
    /// `connect6` sends here.
    pub const OUTBOUND_V6: u32 = 1;
    /// `sk_lookup` steers IPv4 here.
    pub const INBOUND_V4: u32 = 2;
    /// `sk_lookup` steers IPv6 here.
    pub const INBOUND_V6: u32 = 3;
}

/// Key of `LISTENERS`, a sockhash: a listener leaves it by itself when its process dies, which is
/// what makes a dead daemon mean "refused".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// [`role`].
    pub role: u32,
    /// Zero.
    pub pad: u32,
}

/// Key of `FLOWS` and `CLIENTS`: one end of a TCP connection inside a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// Source address.
    pub addr: Addr,
    /// Source port.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// The key under which a place is reserved, from the decision to connect until the source port is
/// known. No namespace has the cookie 0.
#[must_use]
#[inline(always)]
pub const fn reservation(socket: u64) -> EndKey {
    EndKey { netns: 0, addr: [socket as u32, (socket >> 32) as u32, 0, 0], port: 0, pad: [0; 3] }
}

/// Value of `FLOWS`: what the application asked for on the captured connection with this source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The address asked for.
    pub dst: Addr,
    /// Cookie of the application's socket.
    pub socket: u64,
    /// `CLOCK_MONOTONIC` of publication, in nanoseconds: what nobody took is swept by age.
    pub at: u64,
    /// The port asked for.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Value of `CLIENTS`: whom the delivery with this source speaks for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The real client.
    pub addr: Addr,
    /// The address that the delivery goes to; anything else that turns up with the same source is
    /// somebody else's connection.
    pub dst: Addr,
    /// Cookie of the daemon's socket.
    pub socket: u64,
    /// `CLOCK_MONOTONIC` of recording, in nanoseconds.
    pub at: u64,
    /// The real client's port.
    pub port: u16,
    /// The port that the delivery goes to.
    pub dst_port: u16,
    /// Zero.
    pub pad: u32,
}

/// What [`SocketState`] says about a socket.
pub mod socket_kind {
    /// A captured outbound socket: `addr` is what it asked for.
    pub const OUTBOUND: u32 = 1;
    /// A socket accepted from a delivery: `addr` is the real client.
    pub const ACCEPTED: u32 = 2;
    /// The daemon's end of a delivery, not yet connected: `addr` is the real client. Userspace
    /// writes it.
    pub const DELIVERY: u32 = 3;
    /// The daemon's end of a connection that leaves the pod; nothing else of the value counts.
    /// Userspace writes it.
    pub const CARRIED: u32 = 4;
    /// A socket of the node itself: of a process in the host's network namespace and in no pod;
    /// nothing else of the value counts.
    pub const NODE: u32 = 5;
}

/// Value of `SOCKETS`, kept with a socket and gone with it: the peer that it stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// The peer's address.
    pub addr: Addr,
    /// [`socket_kind`].
    pub kind: u32,
    /// The peer's port.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// What an entry of `EXCLUDED_PORTS` says of a port.
pub mod direction {
    /// Connections that the pod opens to it are not captured.
    pub const OUTBOUND: u16 = 0;
    /// Connections that the pod accepts at it are not captured.
    pub const INBOUND: u16 = 1;
    /// Connections that the node itself opens to it (kubelet's probes) are not captured.
    pub const PROBE: u16 = 2;
    /// With [`crate::pod_flags::ONLY_OUTBOUND`]: connections that the pod opens to it are.
    pub const INCLUDED_OUTBOUND: u16 = 3;
    /// With [`crate::pod_flags::ONLY_INBOUND`]: connections that the pod accepts at it are.
    pub const INCLUDED_INBOUND: u16 = 4;
}

/// Values of `EXCLUDED_CIDRS`.
pub mod range {
    /// Connections to it are not captured.
    pub const EXCLUDED: u8 = 1;
    /// With [`crate::pod_flags::ONLY_OUTBOUND`]: connections to it are.
    pub const INCLUDED: u8 = 2;
}

/// Key of `NODE_FLOWS`: a connection that the node itself has opened. Its value is the cookie of
/// the socket, by which its end takes the entry away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeFlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Zero.
    pub pad: u32,
}

/// Key of `EXCLUDED_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The port.
    pub port: u16,
    /// [`direction`].
    pub direction: u16,
    /// Zero.
    pub pad: u32,
}

/// Data of a key of `EXCLUDED_CIDRS` (a trie): the cookie is part of every prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CidrKey {
    /// Cookie of the pod's network namespace, in memory order.
    pub netns: [u32; 2],
    /// The address.
    pub addr: Addr,
}

/// Key of `EXCLUDED_CIDRS` as userspace writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CidrPrefix {
    /// Bits of `key` that count, from [`CIDR_NETNS_BITS`] to [`CIDR_ALL_BITS`].
    pub prefix_len: u32,
    /// What they are compared with.
    pub key: CidrKey,
}

/// Bits of a [`CidrKey`] before the address.
pub const CIDR_NETNS_BITS: u32 = 64;
/// Bits of a [`CidrKey`] before the four bytes of an IPv4 address.
pub const CIDR_V4_BITS: u32 = CIDR_NETNS_BITS + 96;
/// Bits of a whole [`CidrKey`].
pub const CIDR_ALL_BITS: u32 = CIDR_NETNS_BITS + 128;

/// The only entry of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Cookie of the host's network namespace: always passes.
    pub host_netns: u64,
    /// Number of the cgroup of all pods: processes below it are not the node itself. Zero: not
    /// known, and no process is.
    pub pods_cgroup: u64,
    /// Not zero: a namespace without an entry in `PODS` is refused.
    pub refuse_unknown: u32,
    /// No meaning.
    pub pad: u32,
}

macro_rules! layout {
    ($($name:ty = $size:literal / $align:literal),* $(,)?) => {
        $(const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == $align);)*
        #[cfg(feature = "user")]
        mod pod {
            use super::*;
            $(
                #[expect(unsafe_code, reason = "the marker trait of aya is unsafe to implement")]
                // SAFETY: repr(C) integers without padding (sizes asserted above), so every bit
                // pattern is valid and no byte is uninitialised.
                unsafe impl aya::Pod for $name {}
            )*
        }
    };
}

layout! {
    PodEntry = 40 / 8,
    ListenerKey = 16 / 8,
    EndKey = 32 / 8,
    Flow = 40 / 8,
    Client = 56 / 8,
    SocketState = 24 / 4,
    PortKey = 16 / 8,
    CidrKey = 24 / 4,
    CidrPrefix = 28 / 4,
    Settings = 24 / 8,
    NodeFlowKey = 40 / 4,
}
