//! Connections that are alive: what the admin API lists, what a change of policy cuts, what a
//! drain waits for and finally forces.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fairlead_telemetry::TcpConnection;
use fairlead_types::{SpiffeId, WorkloadId};
use futures_util::task::AtomicWaker;
use http::Request;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::relay::Transferred;
use crate::transport::{InboundStream, RelayCounters};

/// Parts of the table, so that connections on different cores rarely meet.
const SHARDS: usize = 16;

/// Which way a connection goes, seen from the pod that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Begun by a pod of this node.
    Outbound,
    /// Came from outside to a pod of this node.
    Inbound,
}

/// What carries a connection at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being looked at, routed, connected.
    Opening,
    /// Carried as bytes.
    Bytes,
    /// Carried as HTTP.
    Http,
}

/// What policy looks at, kept with a connection so that it can be asked again.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Verified identity of the client.
    pub(crate) peer: Option<SpiffeId>,
    /// SHA-256 of its certificate in hexadecimal; policy does not look at it.
    pub(crate) fingerprint: Option<Arc<str>>,
    /// Address of the client.
    pub(crate) source: SocketAddr,
    /// Address of the application.
    pub(crate) destination: SocketAddr,
}

impl Facts {
    /// Of a stream of the mesh.
    pub(crate) fn of(stream: &InboundStream) -> Self {
        Self {
            peer: Some(stream.peer.identity.clone()),
            fingerprint: Some(Arc::clone(&stream.peer.fingerprint)),
            source: stream.client.0,
            destination: stream.dst.0,
        }
    }
}

/// Whose policy admitted a connection, and by what.
pub(crate) struct Guarded {
    pub(crate) workload: WorkloadId,
    pub(crate) facts: Facts,
    /// The request, in the form that was judged, where one made the connection what it is (an
    /// upgrade, CONNECT).
    pub(crate) request: Option<Request<()>>,
}

impl Guarded {
    /// A connection of bytes.
    pub(crate) fn connection(workload: &WorkloadId, facts: Facts) -> Self {
        Self { workload: workload.clone(), facts, request: None }
    }
}

/// A connection, as the admin API shows it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// A number unique in this process.
    pub id: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// What carries it.
    pub state: State,
    /// The pod of this node that it belongs to.
    pub pod: WorkloadId,
    /// The client.
    pub source: SocketAddr,
    /// The address that the client asked for.
    pub destination: SocketAddr,
    /// The endpoint, once there is one.
    pub upstream: Option<SocketAddr>,
    /// Verified identity of the client, where it has one.
    pub identity: Option<SpiffeId>,
    /// Bytes from the client.
    pub sent: u64,
    /// Bytes to the client.
    pub received: u64,
    /// How long it has existed.
    pub age: Duration,
}

/// A live connection.
pub(crate) struct Live {
    id: u64,
    direction: Direction,
    pod: WorkloadId,
    source: SocketAddr,
    destination: SocketAddr,
    identity: Option<SpiffeId>,
    began: Instant,
    pub(crate) transferred: Transferred,
    /// Counts of a tunnel's relay, which knows its socket and its tunnel, not who the client is.
    pub(crate) tunnelled: RelayCounters,
    /// What the metrics have been told so far.
    published: Transferred,
    series: OnceLock<TcpConnection>,
    state: Mutex<(State, Option<SocketAddr>)>,
    /// Where a change of policy has to be asked again: the destination's workload.
    guarded: Mutex<Option<Arc<Guarded>>>,
    cut: OnceLock<Cut>,
    waker: AtomicWaker,
}

/// Why a live connection was ended from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It would not be admitted any more; the reason in words.
    Policy(Arc<str>),
    /// The deadline of a drain passed.
    Drained,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(reason) => write!(f, "cut by a change of policy: {reason}"),
            Self::Drained => f.write_str("cut: the node daemon is stopping"),
        }
    }
}

impl Live {
    pub(crate) fn set(&self, state: State, upstream: Option<SocketAddr>) {
        *self.state.lock() = (state, upstream);
    }

    /// Bytes from the client and to it, so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (to_tunnel, to_tcp) = (read(&self.tunnelled.to_tunnel), read(&self.tunnelled.to_tcp));
        let (up, down) = match self.direction {
            Direction::Outbound => (to_tunnel, to_tcp),
            Direction::Inbound => (to_tcp, to_tunnel),
        };
        (read(&self.transferred.sent) + up, read(&self.transferred.received) + down)
    }

    /// The connection is carried and counted from here on.
    pub(crate) fn open(&self, series: TcpConnection) {
        let _ = self.series.set(series);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.series.get().is_some()
    }

    /// Tells the metrics what they have not been told: at the end of a connection, and now and
    /// then during a long one, instead of with every piece.
    pub(crate) fn publish(&self) {
        let Some(series) = self.series.get() else { return };
        let (sent, received) = self.bytes();
        let news =
            |published: &AtomicU64, now| now - published.fetch_max(now, Ordering::Relaxed).min(now);
        series.received(news(&self.published.sent, sent));
        series.sent(news(&self.published.received, received));
    }

    /// From here on a change of policy at the destination is asked about it again. See
    /// [`crate::state::Shared::guard`], which leaves no gap.
    pub(crate) fn guard(&self, guarded: Arc<Guarded>) {
        *self.guarded.lock() = Some(guarded);
    }

    /// The destination turned out to be none of this node's.
    pub(crate) fn unguard(&self) {
        *self.guarded.lock() = None;
    }

    pub(crate) fn guarded(&self) -> Option<Arc<Guarded>> {
        self.guarded.lock().clone()
    }

    /// Ends the connection: whoever carries it sees it at [`Live::poll_cut`].
    pub(crate) fn cut(&self, why: Cut) {
        let _ = self.cut.set(why);
        self.waker.wake();
    }

    /// Ready when the connection has to end. One task may wait.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.waker.register(cx.waker());
        match self.cut.get() {
            Some(why) => Poll::Ready(why.clone()),
            None => Poll::Pending,
        }
    }

    /// Waits for the end from outside.
    pub(crate) async fn until_cut(&self) -> Cut {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }

    fn info(&self) -> ConnectionInfo {
        let (state, upstream) = *self.state.lock();
        let (sent, received) = self.bytes();
        ConnectionInfo {
            id: self.id,
            direction: self.direction,
            state,
            pod: self.pod.clone(),
            source: self.source,
            destination: self.destination,
            upstream,
            identity: self.identity.clone(),
            sent,
            received,
            age: self.began.elapsed(),
        }
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Registry {
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS],
    count: AtomicUsize,
    /// Those that are on their way into the table.
    coming: AtomicUsize,
    empty: Notify,
}

/// A connection that has been accepted, or a listener that may yet accept one. It is let go once
/// the connection is in the table.
pub(crate) struct Coming(Arc<Registry>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.empty.notify_waiters();
        }
    }
}

/// A place in the registry; dropping it removes the connection.
pub(crate) struct Entry {
    registry: Arc<Registry>,
    live: Arc<Live>,
}

impl Entry {
    /// The connection, for what outlives a borrow of its entry.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }
}

impl std::ops::Deref for Entry {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.live.publish();
        self.registry.shard(self.live.id).lock().remove(&self.live.id);
        if self.registry.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.registry.empty.notify_waiters();
        }
    }
}

impl Registry {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        &self.shards[(id % SHARDS as u64) as usize]
    }

    /// Adds a connection.
    pub(crate) fn add(
        self: &Arc<Self>,
        direction: Direction,
        pod: &WorkloadId,
        source: SocketAddr,
        destination: SocketAddr,
        identity: Option<SpiffeId>,
    ) -> Entry {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            direction,
            pod: pod.clone(),
            source,
            destination,
            identity,
            began: Instant::now(),
            transferred: Transferred::default(),
            tunnelled: RelayCounters::default(),
            published: Transferred::default(),
            series: OnceLock::new(),
            state: Mutex::new((State::Opening, None)),
            guarded: Mutex::default(),
            cut: OnceLock::new(),
            waker: AtomicWaker::new(),
        });
        self.count.fetch_add(1, Ordering::AcqRel);
        self.shard(id).lock().insert(id, Arc::clone(&live));
        Entry { registry: Arc::clone(self), live }
    }

    /// Somebody is on the way: there is no end before it has come.
    pub(crate) fn coming(self: &Arc<Self>) -> Coming {
        self.coming.fetch_add(1, Ordering::AcqRel);
        Coming(Arc::clone(self))
    }

    /// Calls `f` for each. Copies a shard at a time, so that `f` runs without a lock.
    pub(crate) fn each(&self, mut f: impl FnMut(&Live)) {
        for shard in &self.shards {
            let connections: Vec<_> = shard.lock().values().cloned().collect();
            connections.iter().for_each(|live| f(live));
        }
    }

    pub(crate) fn list(&self) -> Vec<ConnectionInfo> {
        let mut list = Vec::with_capacity(self.count());
        self.each(|live| list.push(live.info()));
        list.sort_unstable_by_key(|c| c.id);
        list
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until there is no connection, and none on its way.
    pub(crate) async fn until_empty(&self) {
        loop {
            let emptied = self.empty.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            // In this order: who is not coming any more is counted.
            if self.coming.load(Ordering::Acquire) == 0 && self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_come_and_go_and_can_be_cut() {
        let registry = Arc::new(Registry::default());
        let pod = WorkloadId::new("a", "b");
        let addr: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let entry = registry.add(Direction::Outbound, &pod, addr, addr, None);
        entry.transferred.sent.fetch_add(3, Ordering::Relaxed);
        assert_eq!(registry.list()[0].sent, 3);
        registry.each(|live| live.cut(Cut::Drained));
        assert_eq!(entry.until_cut().await, Cut::Drained);
        let other = Arc::clone(&registry);
        let waiter = tokio::spawn(async move { other.until_empty().await });
        tokio::task::yield_now().await;
        drop(entry);
        waiter.await.unwrap();
        assert!(registry.list().is_empty());
    }
}
