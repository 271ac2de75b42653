//! The one place where the current snapshot lives: readers load it without a lock, the writer
//! swaps it whole, and whoever has to act on a change is told.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use crate::model::Snapshot;

type Listener = Arc<dyn Fn(&Arc<Snapshot>) + Send + Sync>;

/// Holds the current snapshot. Cloning the handle shares it.
#[derive(Clone)]
pub struct SnapshotHandle {
    inner: Arc<Inner>,
}

struct Inner {
    current: ArcSwap<Snapshot>,
    /// Serializes publication, so that listeners see snapshots in the order of their versions.
    listeners: Mutex<Listeners>,
    version: Mutex<u64>,
    changed: Condvar,
}

#[derive(Default)]
struct Listeners {
    next: u64,
    list: Vec<(u64, Listener)>,
}

impl SnapshotHandle {
    /// A handle that holds `first`.
    #[must_use]
    pub fn new(first: Arc<Snapshot>) -> Self {
        let version = Mutex::new(first.version);
        Self {
            inner: Arc::new(Inner {
                current: ArcSwap::new(first),
                listeners: Mutex::default(),
                version,
                changed: Condvar::new(),
            }),
        }
    }

    /// The current snapshot. Lock-free; a connection or request calls it once and keeps the
    /// result to its end.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.inner.current.load_full()
    }

    /// Runs `f` on the current snapshot without touching its reference count: for decisions that
    /// end before `f` does.
    pub fn with<T>(&self, f: impl FnOnce(&Snapshot) -> T) -> T {
        f(&self.inner.current.load())
    }

    /// Makes `next` the current snapshot and tells every listener, in this thread.
    pub fn publish(&self, next: Arc<Snapshot>) {
        let listeners = self.inner.listeners.lock();
        self.inner.current.store(Arc::clone(&next));
        *self.inner.version.lock() = next.version;
        self.inner.changed.notify_all();
        for (_, listener) in &listeners.list {
            listener(&next);
        }
    }

    /// Calls `listener` with the current snapshot now, and with each later one when it is
    /// published, in the publisher's thread, until the subscription is dropped. The listener must
    /// be short and must neither publish nor subscribe.
    pub fn subscribe(
        &self,
        listener: impl Fn(&Arc<Snapshot>) + Send + Sync + 'static,
    ) -> Subscription {
        let mut listeners = self.inner.listeners.lock();
        listener(&self.load());
        let id = listeners.next;
        listeners.next += 1;
        listeners.list.push((id, Arc::new(listener)));
        Subscription { inner: Arc::downgrade(&self.inner), id }
    }

    /// Blocks until a snapshot newer than `version` is current, at most `timeout`. `None` when
    /// the time ran out.
    #[must_use]
    pub fn wait_newer(&self, version: u64, timeout: Duration) -> Option<Arc<Snapshot>> {
        let deadline = Instant::now() + timeout;
        let mut current = self.inner.version.lock();
        while *current <= version {
            if self.inner.changed.wait_until(&mut current, deadline).timed_out()
                && *current <= version
            {
                return None;
            }
        }
        drop(current);
        Some(self.load())
    }
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotHandle").field("version", &self.with(|s| s.version)).finish()
    }
}

/// Ends the calls to a listener when it is dropped.
#[must_use = "dropping the subscription ends it"]
pub struct Subscription {
    inner: Weak<Inner>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.listeners.lock().list.retain(|(id, _)| *id != self.id);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn version(version: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { version, ..Snapshot::default() })
    }

    #[test]
    fn readers_waiters_and_listeners_see_a_publication() {
        let handle = SnapshotHandle::new(version(1));
        let seen = Arc::new(AtomicU64::new(0));
        let sink = Arc::clone(&seen);
        let subscription = handle.subscribe(move |s| sink.store(s.version, Ordering::SeqCst));
        assert_eq!(seen.load(Ordering::SeqCst), 1);

        let other = handle.clone();
        let waiter = std::thread::spawn(move || other.wait_newer(1, Duration::from_secs(10)));
        handle.publish(version(2));
        assert_eq!(waiter.join().unwrap().unwrap().version, 2);
        assert_eq!(handle.load().version, 2);
        assert_eq!(seen.load(Ordering::SeqCst), 2);

        drop(subscription);
        handle.publish(version(3));
        assert_eq!(seen.load(Ordering::SeqCst), 2);
        assert!(handle.wait_newer(3, Duration::from_millis(5)).is_none());
    }
}
