//! The way between two pods of this node.
//!
//! What one of them sends the other goes through the daemon, not over the pods' network; the rules
//! that a policy engine keeps there (a NetworkPolicy) would never be asked. So the way is walked
//! before it is used: a TCP connection from the one's namespace to the other's address and port,
//! opened and closed without a byte. How long that is good for: [`crate::path`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::path::{Found, Known, Path, Walk};
use crate::reach::{self, Caller, Failure};
use crate::sock;
use crate::state::Pod;
use crate::transport::limits;

/// Ways that are remembered of a pod at most; beyond it the memory starts anew.
const WAYS_MAX: usize = 1024;
/// A connection that a way is walked with is met at once, or never: it went to a pod that had just
/// left the mesh, or broke before it was accepted.
const WALK_MET: Duration = Duration::from_secs(5);

/// A pod and an address of it: another pod that gets the address is reached by another way.
type End = (NetnsCookie, SocketAddr);

type Paths = HashMap<End, Arc<Path>, foldhash::fast::RandomState>;

/// The ways from a pod to others of its node that it has used lately.
#[derive(Default)]
pub(crate) struct Ways {
    open: ArcSwap<Paths>,
    /// Those that are walked for the first time, each with how many connections wait for it:
    /// however many, one walks.
    first: Mutex<HashMap<End, (usize, Arc<First>)>>,
}

/// A way that is walked for the first time.
#[derive(Default)]
struct First {
    walking: tokio::sync::Mutex<()>,
    /// The last that came to nothing: those who waited for it share its outcome.
    failed: Mutex<Option<(Instant, Arc<io::Error>)>>,
}

impl Ways {
    fn known(&self, end: &End) -> Known {
        self.open.load().get(end).map_or(Known::Stale, |path| path.known(Instant::now()))
    }

    fn walk(&self, end: &End) -> Option<Walk> {
        self.open.load().get(end)?.walk()
    }

    fn opened(&self, end: End) {
        let now = Instant::now();
        self.open.rcu(|ways| {
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
        self.open.rcu(|ways| {
            let mut ways = HashMap::clone(ways);
            ways.remove(end);
            ways
        });
    }

    fn wait(&self, end: End) -> Waiting<'_> {
        let mut all = self.first.lock();
        let (waiting, first) = all.entry(end).or_default();
        *waiting += 1;
        Waiting { ways: self, end, first: Arc::clone(first) }
    }

    /// Walks a way that is not known with `step`, or waits for somebody who does.
    async fn first<F>(&self, end: End, step: impl FnOnce() -> F) -> Result<(), Arc<io::Error>>
    where
        F: Future<Output = io::Result<()>>,
    {
        let since = Instant::now();
        let waiting = self.wait(end);
        let first = &waiting.first;
        let _walking = first.walking.lock().await;
        if self.known(&end) != Known::Stale {
            return Ok(());
        }
        if let Some((when, error)) = &*first.failed.lock()
            && *when >= since
        {
            return Err(Arc::clone(error));
        }
        match step().await {
            Ok(()) => {
                self.opened(end);
                Ok(())
            }
            Err(error) => {
                let error = Arc::new(error);
                *first.failed.lock() = Some((Instant::now(), Arc::clone(&error)));
                Err(error)
            }
        }
    }
}

/// A connection that waits for a way to be walked for the first time.
struct Waiting<'w> {
    ways: &'w Ways,
    end: End,
    first: Arc<First>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut first) = self.ways.first.lock().entry(self.end) {
            let waiting = &mut first.get_mut().0;
            *waiting -= 1;
            // Nobody else is to be told what came of it.
            if *waiting == 0 {
                first.remove();
            }
        }
    }
}

/// Connections that are under way only to see whether they arrive: by source and destination, for the
/// listener that meets them. They are no traffic of a pod, and nobody is to hear of them.
#[derive(Default)]
pub(crate) struct Walks {
    /// Read for every connection that arrives; there is hardly ever one.
    count: AtomicUsize,
    /// By source port and destination: there may be pods that have the same port by chance.
    begun: Mutex<HashMap<(u16, SocketAddr), Vec<Begun>>>,
}

/// A walk under way.
#[derive(Clone, PartialEq)]
struct Begun {
    /// The addresses that the pod has; which of them it is, is known when the walk arrives. None:
    /// nobody has told them.
    from: Box<[IpAddr]>,
    at: Instant,
}

impl Begun {
    fn is_from(&self, ip: IpAddr) -> bool {
        self.from.is_empty() || self.from.contains(&ip)
    }
}

impl Walks {
    fn begin(&self, from: &[IpAddr], port: u16, to: SocketAddr) -> Begun {
        let walk = Begun { from: from.into(), at: Instant::now() };
        let mut begun = self.begun.lock();
        begun.entry((port, to)).or_default().push(walk.clone());
        self.count.store(begun.len(), Ordering::Release);
        walk
    }

    /// Whether a connection that a listener took is one of them. `peer`: as accept(2) told it; the
    /// socket may not know any more.
    pub(crate) fn meets(&self, tcp: &TcpStream, peer: SocketAddr) -> bool {
        self.count.load(Ordering::Acquire) != 0
            && tcp.local_addr().is_ok_and(|to| {
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                let from = peer.ip().to_canonical();
                self.take(peer.port(), to, |walk| walk.is_from(from))
            })
    }

    fn take(&self, port: u16, to: SocketAddr, is_it: impl Fn(&Begun) -> bool) -> bool {
        let mut begun = self.begun.lock();
        begun.retain(|_, walks| {
            walks.retain(|walk| walk.at.elapsed() < WALK_MET);
            !walks.is_empty()
        });
        let mut taken = false;
        if let Entry::Occupied(mut walks) = begun.entry((port, to)) {
            if let Some(at) = walks.get().iter().position(is_it) {
                walks.get_mut().remove(at);
                taken = true;
            }
            if walks.get().is_empty() {
                walks.remove();
            }
        }
        self.count.store(begun.len(), Ordering::Release);
        taken
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
        let (pod, to) = (&self.pod, end.1);
        let step = || self.step(to, timeout.min(limits::CONNECT_TIMEOUT));
        pod.ways.first(end, step).await.map_err(|error| {
            if is_ours(&error) {
                return Failure::io(to, &error);
            }
            let reason = format!("the pods' network lets nobody from {} to {to}: {error}", pod.id);
            Failure::new(Refusal::Connect, reason, true)
        })
    }

    /// Walks once.
    async fn step(&self, to: SocketAddr, timeout: Duration) -> io::Result<()> {
        let socket = self.pod.port.outbound_socket(to)?;
        let port = port_of(&socket, to)?;
        // Before it leaves, or it might be met before anybody knows what it is.
        let walks = &self.shared.walks;
        let walk = walks.begin(&self.workload.ips, port, to);
        let connected = sock::connect(socket, to, timeout).await;
        match connected {
            Ok(stream) => sock::reset(stream),
            Err(error) => {
                walks.take(port, to, |begun| *begun == walk);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The way has been open, and is walked again beside what goes on.
async fn again(caller: Caller, end: End, walk: Walk) {
    let step = || async {
        match caller.step(end.1, limits::CONNECT_TIMEOUT).await {
            Ok(()) => Found::Open,
            Err(error) if is_ours(&error) => Found::Unclear(error.to_string()),
            Err(error) => Found::Closed(error.to_string()),
        }
    };
    if let Err(reason) = walk.again(step).await {
        tracing::info!(
            from = %caller.pod.id, to = %end.1, reason,
            "a pod of this node cannot be reached any more over the pods' network"
        );
        caller.pod.ways.closed(&end);
    }
}

/// Whether an error is this node's, and says nothing of the network.
fn is_ours(error: &io::Error) -> bool {
    reach::is_shortage(error)
        || matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
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
            assert!(ways.open.load().len() <= WAYS_MAX);
            assert_eq!(ways.known(&end(pod, 80)), Known::Fresh);
        }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// Whether a connection from an address is a walk.
    fn met(walks: &Walks, from: IpAddr, port: u16, to: SocketAddr) -> bool {
        walks.take(port, to, |walk| walk.is_from(from))
    }

    #[test]
    fn a_walk_is_met_once_by_where_it_goes() {
        let (walks, to, from) = (Walks::default(), end(1, 80).1, ip(7));
        assert!(!met(&walks, from, 4000, to));
        walks.begin(&[ip(8), from], 4000, to);
        assert!(!met(&walks, from, 4001, to) && !met(&walks, from, 4000, end(1, 81).1));
        assert!(met(&walks, from, 4000, to));
        assert!(!met(&walks, from, 4000, to));
    }

    #[test]
    fn walks_from_one_port_of_two_pods_are_two() {
        let (walks, to) = (Walks::default(), end(1, 80).1);
        walks.begin(&[ip(7)], 4000, to);
        walks.begin(&[ip(8)], 4000, to);
        assert!(!met(&walks, ip(9), 4000, to), "a connection of a third one is none");
        assert!(met(&walks, ip(7), 4000, to) && met(&walks, ip(8), 4000, to));
        assert!(!met(&walks, ip(7), 4000, to) && !met(&walks, ip(8), 4000, to));
        // Of a pod whose addresses nobody has told.
        walks.begin(&[], 4000, to);
        assert!(met(&walks, ip(9), 4000, to));
        assert_eq!(walks.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn walks_that_nobody_met_are_forgotten() {
        let (walks, to, from) = (Walks::default(), end(1, 80).1, ip(7));
        let before = Instant::now().checked_sub(WALK_MET).unwrap();
        for port in 0..100 {
            let old = Begun { from: [from].into(), at: before };
            walks.begun.lock().insert((port, to), vec![old]);
        }
        walks.begin(&[from], 4000, to);
        assert!(!met(&walks, from, 1, to));
        assert_eq!(walks.begun.lock().len(), 1);
        assert!(met(&walks, from, 4000, to));
        assert_eq!(walks.count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn however_many_wait_one_walks() {
        let ways = Ways::default();
        let walked = AtomicUsize::new(0);
        let walk = |error: Option<io::ErrorKind>| {
            let walked = &walked;
            move || async move {
                walked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                error.map_or(Ok(()), |kind| Err(kind.into()))
            }
        };
        let refused = walk(Some(io::ErrorKind::ConnectionRefused));
        let (a, b) = tokio::join!(ways.first(end(1, 80), refused), ways.first(end(1, 80), refused));
        assert!(a.is_err() && b.is_err());
        assert_eq!(walked.load(Ordering::Relaxed), 1);
        assert!(ways.first.lock().is_empty());
        // Whoever comes later asks again.
        let (a, b) =
            tokio::join!(ways.first(end(1, 80), walk(None)), ways.first(end(1, 80), walk(None)));
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(walked.load(Ordering::Relaxed), 2);
        assert_eq!(ways.known(&end(1, 80)), Known::Fresh);
        assert!(ways.first.lock().is_empty());
    }
}
