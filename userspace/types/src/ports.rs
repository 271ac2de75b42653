//! The ports between the data plane and the kernel: what `proxy` needs of a pod's network
//! namespace. `capture` implements them with eBPF and `setns`; `proxy` never sees either.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{ClientAddr, NetnsCookie, OriginalDst};

/// One pod's network namespace, as the data plane may use it. Every call is a handful of system
/// calls and never blocks on the network.
pub trait PodPort: Send + Sync + 'static {
    /// The cookie of the namespace.
    fn cookie(&self) -> NetnsCookie;

    /// A non-blocking TCP socket in the pod's namespace, not yet connected, for reaching `to`.
    /// Its connection leaves with the pod's own address.
    ///
    /// # Errors
    /// The namespace is gone, or the process is out of descriptors.
    fn outbound_socket(&self, to: SocketAddr) -> io::Result<OwnedFd>;

    /// A non-blocking TCP socket in the pod's namespace, bound to the delivery source (127.0.0.6
    /// or ::6), for handing a connection of `client` to the application at `to`. The client has
    /// been recorded, so that the application's `accept()` and `getpeername()` show it.
    ///
    /// # Errors
    /// As [`PodPort::outbound_socket`]; also when the client could not be recorded (map at its
    /// bound): the connection must then be refused.
    fn delivery_socket(&self, client: ClientAddr, to: SocketAddr) -> io::Result<OwnedFd>;

    /// Takes the destination that the application asked for, of the captured connection whose
    /// accepted socket has the peer address `peer`. An entry can be taken once.
    ///
    /// # Errors
    /// [`FlowMiss`]: nobody knows this flow; the connection must be refused, never guessed at.
    fn take_original_dst(&self, peer: SocketAddr) -> Result<OriginalDst, FlowMiss>;
}

/// No flow entry for a connection that reached the outbound listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowMiss {
    /// There is no entry: the connection did not come by way of capture.
    #[error("no flow entry: the connection did not come by way of capture")]
    Unknown,
    /// The kernel refused the lookup.
    #[error("flow lookup failed (errno {0})")]
    Lookup(i32),
}

/// What enrolment hands to the data plane for one pod: listening sockets inside its namespace
/// (non-blocking, already listening and published to the eBPF programs) and the port to it.
pub struct PodSockets {
    /// Listeners on 127.0.0.1 and ::1 that `connect4|6` redirect outbound connections to.
    pub outbound: Vec<TcpListener>,
    /// Listeners that `sk_lookup` steers inbound connections to; the local address of a socket
    /// accepted from them is the original destination.
    pub inbound: Vec<TcpListener>,
    /// The way into the namespace.
    pub port: Arc<dyn PodPort>,
    /// The global addresses that the pod's interfaces have, in their order. The pod itself may have
    /// put them there.
    pub ips: Vec<IpAddr>,
    /// The addresses that the network plugins gave the pod, if they have told. Those of a pod that
    /// has just started stand in no API object yet, and of one that was started again (its node
    /// booted) other ones may.
    pub given: Vec<IpAddr>,
}
