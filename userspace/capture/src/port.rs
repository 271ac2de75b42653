//! The data plane's way into one pod's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fairlead_abi::{EndKey, SocketState, socket_kind};
use fairlead_types::{ClientAddr, FlowMiss, NetnsCookie, OriginalDst, PodPort};

use crate::addr::{delivery_source, from_abi, loopback_sources, to_abi};
use crate::maps::Maps;
use crate::sys::netns::Netns;
use crate::sys::{netlink, socket};

/// One enrolled pod.
#[derive(Debug)]
pub(crate) struct Port {
    netns: Netns,
    maps: Arc<Maps>,
    /// Deliveries so far: they take turns with the sources, so that no source runs out of ports.
    deliveries: AtomicU32,
}

impl Port {
    pub(crate) fn new(netns: Netns, maps: Arc<Maps>) -> Self {
        Self { netns, maps, deliveries: AtomicU32::new(0) }
    }

    /// A socket bound to a delivery source, in the pod's namespace (the calling thread is there).
    fn bound_to_source(to: &IpAddr, turn: u32) -> io::Result<OwnedFd> {
        let socket = socket::tcp(to)?;
        // The port is chosen by connect(), which needs it to be free towards `to` only; bind()
        // would want one that is free towards everybody, and those run out.
        socket::set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        let source = SocketAddr::new(delivery_source(to, turn), 0);
        match socket::bind(socket.as_fd(), source) {
            // A pod that had no IPv6 address when it joined: only now are the sources needed.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && to.is_ipv6() => {
                netlink::add_loopback_addrs(loopback_sources())?;
                socket::bind(socket.as_fd(), source)?;
            }
            result => result?,
        }
        Ok(socket)
    }
}

impl PodPort for Port {
    fn cookie(&self) -> NetnsCookie {
        self.netns.cookie()
    }

    fn outbound_socket(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.netns.within(|| socket::tcp(&to.ip()))??;
        // What tells the kernel that this one is the daemon's: without it, it would be captured.
        let state = SocketState { kind: socket_kind::CARRIED, ..SocketState::default() };
        self.maps.sockets.insert(&socket.as_raw_fd(), &state)?;
        Ok(socket)
    }

    fn delivery_socket(&self, client: ClientAddr, to: SocketAddr) -> io::Result<OwnedFd> {
        let turn = self.deliveries.fetch_add(1, Ordering::Relaxed);
        let socket = self.netns.within(|| Self::bound_to_source(&to.ip(), turn))??;
        // Kept with the socket: when it connects, the kernel records the client under the source
        // port that it gets, for this destination alone; if it never does, nothing is left over.
        let state = SocketState {
            addr: to_abi(client.ip()),
            kind: socket_kind::DELIVERY,
            port: client.port(),
            pad: 0,
        };
        self.maps.sockets.insert(&socket.as_raw_fd(), &state)?;
        Ok(socket)
    }

    fn take_original_dst(&self, peer: SocketAddr) -> Result<OriginalDst, FlowMiss> {
        let key = EndKey {
            netns: self.netns.cookie().0,
            addr: to_abi(peer.ip()),
            port: peer.port(),
            pad: [0; 3],
        };
        match self.maps.flows.take(&key) {
            Ok(Some(flow)) => Ok(OriginalDst(from_abi(&flow.dst, flow.port))),
            Ok(None) => Err(FlowMiss::Unknown),
            Err(error) => Err(FlowMiss::Lookup(error.raw_os_error().unwrap_or_default())),
        }
    }
}
