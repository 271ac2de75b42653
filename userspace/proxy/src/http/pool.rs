//! HTTP connections that wait for their next request, per pod: to the pod's own application, and
//! from the pod to elsewhere. HTTP/1 connections are taken and given back; HTTP/2 connections are
//! shared.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use fairlead_types::SpiffeId;
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;

use crate::body::Body;
use crate::state::Pod;

/// HTTP/1 connections to one place that wait at most.
const IDLE_PER_KEY: usize = 256;
/// And in one pod's pool altogether.
const IDLE: usize = 4096;
/// How long a connection waits for its next request.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Requests on one HTTP/2 connection before another one is opened beside it.
pub(super) const PER_HTTP2: usize = 100;
/// HTTP/2 connections to one place at most; beyond it they are shared by more.
const HTTP2_PER_KEY: usize = 16;
/// And in one pod's pool altogether; one more serves its own request and is not kept.
const HTTP2: usize = 1024;

/// What makes two requests take the same connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The other end.
    pub(crate) to: SocketAddr,
    /// The way there.
    pub(crate) via: Via,
    /// Whether HTTP/2 is spoken.
    pub(crate) http2: bool,
}

/// How a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// To the pod's application, which sees this client address.
    Delivery(IpAddr),
    /// In plaintext, out of the pod's namespace.
    Plain,
    /// Through a tunnel of the transport, to a peer that has proven to be one of these.
    Tunnel(Arc<[SpiffeId]>),
}

/// A connection to send a request on.
pub(crate) enum Sender {
    Http1(http1::SendRequest<Body>, Local),
    Http2(
        http2::SendRequest<Body>,
        Local,
        #[expect(dead_code, reason = "counts as long as it lives")] Busy,
    ),
}

/// This side's address of a connection, for the access log.
pub(crate) type Local = Option<SocketAddr>;

impl Sender {
    fn local(&self) -> Local {
        match self {
            Self::Http1(_, local) | Self::Http2(_, local, _) => *local,
        }
    }
}

/// Counts a request on a shared connection.
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn enter(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose response is being read. Dropped instead of given back, an HTTP/1
/// connection ends.
pub(crate) struct Lease {
    pod: Arc<Pod>,
    key: Key,
    sender: Sender,
}

impl Lease {
    pub(crate) fn new(pod: &Arc<Pod>, key: Key, sender: Sender) -> Self {
        Self { pod: Arc::clone(pod), key, sender }
    }

    /// This side's address of the connection.
    pub(crate) fn local(&self) -> Local {
        self.sender.local()
    }

    /// The response has been read to its end.
    pub(crate) fn give_back(self) {
        if let Sender::Http1(sender, local) = self.sender
            && !sender.is_closed()
        {
            self.pod.pool.put(self.key, sender, local);
        }
    }
}

#[derive(Default)]
struct Slot {
    /// The one that waited least is last.
    idle: Vec<(http1::SendRequest<Body>, Local, Instant)>,
    shared: Vec<Shared>,
}

struct Shared {
    sender: http2::SendRequest<Body>,
    local: Local,
    busy: Arc<AtomicUsize>,
    used: Instant,
}

#[derive(Default)]
struct Slots {
    map: HashMap<Key, Slot>,
    idle: usize,
    /// HTTP/2 connections, as of the last sweep, and those added since.
    shared: usize,
}

/// The pool of one pod.
#[derive(Default)]
pub(crate) struct Pool {
    slots: Mutex<Slots>,
}

impl Pool {
    /// A connection that is open and free, if there is one.
    pub(crate) async fn take(&self, key: &Key) -> Option<Sender> {
        if key.http2 {
            return self.share(key);
        }
        loop {
            let (mut sender, local) = {
                let mut slots = self.slots.lock();
                let (sender, local, _) = slots.map.get_mut(key)?.idle.pop()?;
                slots.idle -= 1;
                (sender, local)
            };
            // It was given back when its response had been read; its own task may need a moment
            // longer to see that, and may have seen meanwhile that the other side closed it.
            let mut patience = 2;
            let ready = poll_fn(|cx| match sender.poll_ready(cx) {
                Poll::Ready(ready) => Poll::Ready(ready.is_ok()),
                Poll::Pending if patience == 0 => Poll::Ready(false),
                Poll::Pending => {
                    patience -= 1;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            });
            if ready.await {
                return Some(Sender::Http1(sender, local));
            }
        }
    }

    fn share(&self, key: &Key) -> Option<Sender> {
        let mut slots = self.slots.lock();
        let shared = &mut slots.map.get_mut(key)?.shared;
        shared.retain(|c| !c.sender.is_closed());
        let full = shared.len() >= HTTP2_PER_KEY;
        let least = shared.iter_mut().min_by_key(|c| c.busy.load(Ordering::Relaxed))?;
        if least.busy.load(Ordering::Relaxed) >= PER_HTTP2 && !full {
            return None;
        }
        least.used = Instant::now();
        Some(Sender::Http2(least.sender.clone(), least.local, Busy::enter(&least.busy)))
    }

    /// Adds a new HTTP/2 connection and takes the first place on it.
    pub(crate) fn add_http2(
        &self,
        key: &Key,
        sender: http2::SendRequest<Body>,
        local: Local,
    ) -> Sender {
        let busy = Arc::default();
        let taken = Sender::Http2(sender.clone(), local, Busy::enter(&busy));
        let mut slots = self.slots.lock();
        if slots.shared >= HTTP2 {
            return taken;
        }
        let slot = slots.map.entry(key.clone()).or_default();
        if slot.shared.len() < HTTP2_PER_KEY {
            slot.shared.push(Shared { sender, local, busy, used: Instant::now() });
            slots.shared += 1;
        }
        taken
    }

    fn put(&self, key: Key, sender: http1::SendRequest<Body>, local: Local) {
        let mut slots = self.slots.lock();
        if slots.idle >= IDLE {
            return;
        }
        let slot = slots.map.entry(key).or_default();
        if slot.idle.len() < IDLE_PER_KEY {
            slot.idle.push((sender, local, Instant::now()));
            slots.idle += 1;
        }
    }

    /// Closes the connections of HTTP/1 that wait for one place.
    pub(crate) fn forget(&self, key: &Key) {
        let mut slots = self.slots.lock();
        let closed = slots.map.get_mut(key).map(|slot| std::mem::take(&mut slot.idle));
        slots.idle -= closed.as_ref().map_or(0, Vec::len);
        drop(slots);
        drop(closed);
    }

    /// Closes what has waited for long, and forgets what is closed.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut slots = self.slots.lock();
        let fresh = |since: Instant| now.saturating_duration_since(since) < IDLE_TIME;
        let (mut idle, mut shared) = (0, 0);
        slots.map.retain(|_, slot| {
            slot.idle.retain(|(sender, _, since)| fresh(*since) && !sender.is_closed());
            slot.shared.retain(|c| {
                !c.sender.is_closed() && (c.busy.load(Ordering::Relaxed) > 0 || fresh(c.used))
            });
            idle += slot.idle.len();
            shared += slot.shared.len();
            !slot.idle.is_empty() || !slot.shared.is_empty()
        });
        (slots.idle, slots.shared) = (idle, shared);
    }

    /// Closes everything that waits.
    pub(crate) fn clear(&self) {
        *self.slots.lock() = Slots::default();
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    fn key(port: u16, via: Via) -> Key {
        Key { to: ([10, 0, 0, 1], port).into(), via, http2: true }
    }

    #[tokio::test]
    async fn shared_connections_are_bounded_and_kept_apart() {
        let (io, _other) = tokio::io::duplex(64 * 1024);
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
        let (sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let pool = Pool::default();
        let expect = |name: &str| -> Arc<[SpiffeId]> {
            [SpiffeId::new("cluster.local".parse().unwrap(), "default", name).unwrap()].into()
        };
        let (a, b) = (Via::Tunnel(expect("a")), Via::Tunnel(expect("b")));
        drop(pool.add_http2(&key(1, a.clone()), sender.clone(), None));
        assert!(pool.take(&key(1, a)).await.is_some());
        assert!(pool.take(&key(1, b)).await.is_none(), "led to somebody else");
        for port in 0..2 * HTTP2 as u16 {
            drop(pool.add_http2(&key(port, Via::Plain), sender.clone(), None));
        }
        assert_eq!(pool.slots.lock().map.len(), HTTP2);
        assert!(pool.take(&key(0, Via::Plain)).await.is_some());
        pool.sweep(Instant::now() + 2 * IDLE_TIME);
        assert_eq!(pool.slots.lock().map.len(), 0);
        drop(pool.add_http2(&key(1, Via::Plain), sender, None));
        assert!(pool.take(&key(1, Via::Plain)).await.is_some(), "room was not given back");
    }
}
