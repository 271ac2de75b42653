//! The listeners of one pod, on its loopback addresses.
//!
//! Their ports are taken in the pod, before its application starts: one that wants the same port
//! could not be served. So they are drawn from where neither applications nor the kernel's own choice
//! usually are, and never from those that are known to be the application's.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::TcpListener;

use fairlead_abi::role;

use crate::sys::socket;

/// The first of the ports above those that Linux gives to connections (32768 to 60999).
const FIRST: u16 = 61_000;
/// Ports that are tried there, and then ports of the kernel's choice.
const TRIES: usize = 16;

/// The listeners of one pod, by role.
pub(crate) struct Listeners {
    pub(crate) outbound_v4: TcpListener,
    pub(crate) inbound_v4: TcpListener,
    /// Outbound and inbound; missing where the host has no IPv6.
    pub(crate) v6: Option<(TcpListener, TcpListener)>,
}

impl Listeners {
    /// In the calling thread's namespace, on none of the ports `taken`.
    pub(crate) fn make(backlog: i32, taken: &[u16]) -> io::Result<Self> {
        socket::loopback_up()?;
        let mut taken = taken.to_vec();
        let mut one = |v6| {
            let listener = listen(v6, backlog, &taken)?;
            // What is distinct in both families is mistaken for nothing else.
            taken.push(listener.local_addr()?.port());
            Ok::<_, io::Error>(listener)
        };
        let (outbound_v4, inbound_v4) = (one(false)?, one(false)?);
        let v6 = match one(true) {
            Ok(outbound) => Some((outbound, one(true)?)),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { outbound_v4, inbound_v4, v6 })
    }

    pub(crate) fn by_role(&self) -> impl Iterator<Item = (u32, &TcpListener)> {
        let v6 = self.v6.as_ref();
        [(role::OUTBOUND_V4, &self.outbound_v4), (role::INBOUND_V4, &self.inbound_v4)]
            .into_iter()
            .chain(v6.map(|(outbound, _)| (role::OUTBOUND_V6, outbound)))
            .chain(v6.map(|(_, inbound)| (role::INBOUND_V6, inbound)))
    }

    /// The ports of the inbound listeners, zero without one.
    pub(crate) fn inbound_ports(&self) -> io::Result<(u16, u16)> {
        let v6 = match &self.v6 {
            Some((_, inbound)) => inbound.local_addr()?.port(),
            None => 0,
        };
        Ok((self.inbound_v4.local_addr()?.port(), v6))
    }
}

fn listen(v6: bool, backlog: i32, taken: &[u16]) -> io::Result<TcpListener> {
    for _ in 0..TRIES {
        // Each `RandomState` is seeded anew.
        let drawn = RandomState::new().build_hasher().finish() % u64::from(u16::MAX - FIRST + 1);
        let port = FIRST + u16::try_from(drawn).unwrap_or(0);
        if taken.contains(&port) {
            continue;
        }
        match socket::listen_on_loopback(v6, port, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    // Kept open, so that each is another.
    let mut unwanted = Vec::new();
    loop {
        let listener = match socket::listen_on_loopback(v6, 0, backlog) {
            Ok(listener) => listener,
            // There are no others: better one of these than no pod.
            Err(error) => return unwanted.pop().ok_or(error),
        };
        if unwanted.len() == TRIES || !taken.contains(&listener.local_addr()?.port()) {
            return Ok(listener);
        }
        unwanted.push(listener);
    }
}
