//! The way between two pods of this node.
//!
//! What one of them sends the other goes through the daemon, not over the pods' network; the rules
//! that a policy engine keeps there (a NetworkPolicy) would never be asked. So the way is walked
//! before it is used: a TCP connection from the one's namespace to the other's address and port,
//! opened and closed without a byte. How long that is good for: [`crate::path`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_types::{NetnsCookie, Refusal};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::time::Instant;

use crate::path::{Found, Known, Path, Walk};
use crate::reach::{Caller, Failure};
use crate::sock;
use crate::state::Pod;
use crate::transport::limits;

/// Ways that are remembered of a pod at most; beyond it the memory starts anew.
const WAYS_MAX: usize = 1024;
/// From so many connections on, those that nobody has met are looked for: they went to a pod that
/// had just left the mesh.
const WALKS_SWEPT: usize = 1024;
/// After so long a time nobody will meet them.
const WALK_MET: Duration = Duration::from_secs(5);

/// A pod and an address of it: another pod that gets the address is reached by another way.
type End = (NetnsCookie, SocketAddr);

/// The ways from a pod to others of its node that it has used lately.
#[derive(Default)]
pub(crate) struct Ways(ArcSwap<HashMap<End, Arc<Path>, foldhash::fast::RandomState>>);

impl Ways {
    fn known(&self, end: &End) -> Known {
        self.0.load().get(end).map_or(Known::Stale, |path| path.known(Instant::now()))
    }

    fn walk(&self, end: &End) -> Option<Walk> {
        self.0.load().get(end)?.walk()
    }

    fn opened(&self, end: End) {
        let now = Instant::now();
        self.0.rcu(|ways| {
            let mut ways = HashMap::clone(ways);
            if ways.len() >= WAYS_MAX {
                ways.retain(|_, path| path.known(now) != Known::Stale);
            }
            if ways.len() >= WAYS_MAX {
                ways.clear();
            }
            ways.insert(end, Arc::new(Path::new()));
            ways
        });
    }

    fn closed(&self, end: &End) {
        self.0.rcu(|ways| {
            let mut ways = HashMap::clone(ways);
            ways.remove(end);
            ways
        });
    }
}

/// Connections that are under way only to see whether they arrive: by source port and destination,
/// for the listener that meets them. They are no traffic of a pod, and nobody is to hear of them.
#[derive(Default)]
pub(crate) struct Walks {
    /// Read for every connection that arrives; there is hardly ever one.
    count: AtomicUsize,
    begun: Mutex<HashMap<(u16, SocketAddr), Instant>>,
}

impl Walks {
    fn begin(&self, port: u16, to: SocketAddr) {
        let now = Instant::now();
        let mut begun = self.begun.lock();
        if begun.len() >= WALKS_SWEPT {
            begun.retain(|_, when| now.duration_since(*when) < WALK_MET);
        }
        begun.insert((port, to), now);
        self.count.store(begun.len(), Ordering::Release);
    }

    /// Whether a connection from this port is one of them.
    pub(crate) fn take(&self, port: u16, to: SocketAddr) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut begun = self.begun.lock();
        let taken = begun.remove(&(port, to));
        self.count.store(begun.len(), Ordering::Release);
        taken.is_some_and(|when| when.elapsed() < WALK_MET)
    }
}

impl Caller {
    /// Makes sure that there is a way over the pods' network to a pod of this node.
    pub(crate) async fn reachable(
        &self,
        pod: &Pod,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let end = (pod.port.cookie(), to);
        // Within a pod there is no network.
        if end.0 == self.pod.port.cookie() {
            return Ok(());
        }
        match self.pod.ways.known(&end) {
            Known::Fresh => Ok(()),
            Known::Due => {
                if let Some(walk) = self.pod.ways.walk(&end) {
                    tokio::spawn(again(self.clone(), end, walk));
                }
                Ok(())
            }
            Known::Stale => Box::pin(self.first(end, timeout)).await,
        }
    }

    async fn first(&self, end: End, timeout: Duration) -> Result<(), Failure> {
        match self.step(end.1, timeout.min(limits::CONNECT_TIMEOUT)).await {
            Found::Open => {
                self.pod.ways.opened(end);
                Ok(())
            }
            Found::Closed(reason) | Found::Unclear(reason) => Err(Failure::new(
                Refusal::Connect,
                format!(
                    "the pods' network lets nobody from {} to {}: {reason}",
                    self.pod.id, end.1
                ),
                true,
            )),
        }
    }

    /// Walks once.
    async fn step(&self, to: SocketAddr, timeout: Duration) -> Found {
        let socket = self.pod.port.outbound_socket(to).and_then(|s| Ok((port_of(&s, to)?, s)));
        let (port, socket) = match socket {
            Ok(made) => made,
            Err(error) => return Found::Unclear(error.to_string()),
        };
        // Before it leaves, or it might be met before anybody knows what it is.
        let walks = &self.shared.walks;
        walks.begin(port, to);
        match sock::connect(socket, to, timeout).await {
            Ok(stream) => {
                sock::reset(stream);
                Found::Open
            }
            Err(error) => {
                walks.take(port, to);
                Found::Closed(error.to_string())
            }
        }
    }
}

/// The way has been open, and is walked again beside what goes on.
async fn again(caller: Caller, end: End, walk: Walk) {
    let step = || caller.step(end.1, limits::CONNECT_TIMEOUT);
    if let Err(reason) = walk.again(step).await {
        tracing::info!(
            from = %caller.pod.id, to = %end.1, reason,
            "a pod of this node cannot be reached any more over the pods' network"
        );
        caller.pod.ways.closed(&end);
    }
}

/// The port that a socket will connect from.
fn port_of(socket: &OwnedFd, to: SocketAddr) -> io::Result<u16> {
    let socket = SockRef::from(socket);
    let port = |local: socket2::SockAddr| local.as_socket().map_or(0, |local| local.port());
    let bound = port(socket.local_addr()?);
    if bound != 0 {
        return Ok(bound);
    }
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(port(socket.local_addr()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pod: u64, port: u16) -> End {
        (NetnsCookie(pod), SocketAddr::from(([10, 0, 0, 1], port)))
    }

    #[test]
    fn a_way_is_to_a_pod_and_a_port_of_it() {
        let ways = Ways::default();
        ways.opened(end(1, 80));
        assert_eq!(ways.known(&end(1, 80)), Known::Fresh);
        assert_eq!(ways.known(&end(1, 81)), Known::Stale);
        // The next pod that gets the address.
        assert_eq!(ways.known(&end(2, 80)), Known::Stale);
        ways.closed(&end(1, 80));
        assert_eq!(ways.known(&end(1, 80)), Known::Stale);
    }

    #[test]
    fn ways_are_bounded() {
        let ways = Ways::default();
        for pod in 0..3 * WAYS_MAX as u64 {
            ways.opened(end(pod, 80));
            assert!(ways.0.load().len() <= WAYS_MAX);
            assert_eq!(ways.known(&end(pod, 80)), Known::Fresh);
        }
    }

    #[test]
    fn a_walk_is_met_once_by_where_it_goes() {
        let (walks, to) = (Walks::default(), end(1, 80).1);
        assert!(!walks.take(4000, to));
        walks.begin(4000, to);
        assert!(!walks.take(4001, to) && !walks.take(4000, end(1, 81).1));
        assert!(walks.take(4000, to));
        assert!(!walks.take(4000, to));
    }

    #[test]
    fn walks_that_nobody_met_are_forgotten() {
        let (walks, to) = (Walks::default(), end(1, 80).1);
        let before = Instant::now().checked_sub(WALK_MET).unwrap();
        for port in 0..WALKS_SWEPT as u16 {
            walks.begun.lock().insert((port, to), before);
        }
        walks.begin(4000, to);
        assert_eq!(walks.begun.lock().len(), 1);
        assert!(!walks.take(1, to));
    }
}
