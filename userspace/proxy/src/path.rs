//! Whether a destination can still be reached over the pods' network as it could be before.
//!
//! A rule that comes later (a NetworkPolicy) leaves open connections alone in most policy engines:
//! they accept what is established. New connections of the application would go around it as streams
//! of an open session, or from pod to pod inside of a node. So while a way is used for new ones, it is
//! walked again from time to time: a connection like the first is opened and closed. When that is
//! refused or gets no answer, nothing new goes this way; what is open goes on, as it would without a
//! mesh.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::random::random;
use crate::transport::limits;

/// What is known of the way to a destination.
pub(crate) struct Path {
    /// When it was last walked, in milliseconds of [`millis`].
    walked: AtomicU64,
    /// Somebody is walking it.
    walking: AtomicBool,
    /// After how many milliseconds it is to be walked again: not the same for all destinations, or
    /// a node would make its handshakes all at once.
    due: u64,
}

/// How well a way is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Walked a moment ago.
    Fresh,
    /// To be walked again; what is new goes there meanwhile.
    Due,
    /// Not walked for so long that nothing new goes there before it has been.
    Stale,
}

/// Somebody walks, until this is dropped.
pub(crate) struct Walk(Arc<Path>);

/// What came of a walk.
pub(crate) enum Found {
    /// There is a way.
    Open,
    /// Somebody is there, or this node could not even try: nothing is known.
    Unclear(String),
    /// Nobody answered, or the connection was refused: what a packet filter does.
    Closed(String),
}

impl Path {
    pub(crate) fn new() -> Self {
        Self {
            walked: AtomicU64::new(millis(Instant::now())),
            walking: AtomicBool::new(false),
            due: whole(limits::PATH_DUE) + random() % whole(limits::PATH_SPREAD),
        }
    }

    /// There was a way.
    pub(crate) fn walked(&self) {
        self.walked.store(millis(Instant::now()), Ordering::Relaxed);
    }

    pub(crate) fn known(&self, now: Instant) -> Known {
        let age = millis(now).saturating_sub(self.walked.load(Ordering::Relaxed));
        if age < self.due {
            Known::Fresh
        } else if age < whole(limits::PATH_STALE) {
            Known::Due
        } else {
            Known::Stale
        }
    }

    /// The caller is to walk it; `None`: somebody else does.
    pub(crate) fn walk(self: &Arc<Self>) -> Option<Walk> {
        // Read first: every stream asks while somebody walks.
        let free =
            !self.walking.load(Ordering::Relaxed) && !self.walking.swap(true, Ordering::AcqRel);
        free.then(|| Walk(Arc::clone(self)))
    }
}

impl Walk {
    /// Walks until it is known whether there is a way, or that it cannot be known.
    ///
    /// # Errors
    /// There is none, for this reason.
    pub(crate) async fn again<F: Future<Output = Found>>(
        self,
        mut step: impl FnMut() -> F,
    ) -> Result<(), String> {
        for attempt in 1.. {
            match step().await {
                Found::Open => self.0.walked(),
                Found::Unclear(reason) => {
                    tracing::debug!(reason, "the way to a destination was not walked");
                    tokio::time::sleep(limits::PATH_DUE).await;
                }
                Found::Closed(reason) if attempt == limits::PATH_ATTEMPTS => return Err(reason),
                Found::Closed(_) => {
                    tokio::time::sleep(limits::PATH_RETRY).await;
                    continue;
                }
            }
            break;
        }
        Ok(())
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.0.walking.store(false, Ordering::Release);
    }
}

fn whole(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since some moment of this process.
fn millis(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    whole(now.saturating_duration_since(*START))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_ages_until_it_is_walked_again() {
        let path = Path::new();
        let now = Instant::now();
        assert_eq!(path.known(now), Known::Fresh);
        assert_eq!(path.known(now + limits::PATH_DUE - Duration::from_secs(1)), Known::Fresh);
        let due = now + limits::PATH_DUE + limits::PATH_SPREAD + Duration::from_secs(1);
        assert_eq!(path.known(due), Known::Due);
        assert_eq!(path.known(now + limits::PATH_STALE + Duration::from_secs(1)), Known::Stale);
        path.walked.store(millis(due), Ordering::Relaxed);
        assert_eq!(path.known(due), Known::Fresh);
    }

    #[test]
    fn one_walks_at_a_time() {
        let path = Arc::new(Path::new());
        let walk = path.walk();
        assert!(walk.is_some());
        assert!(path.walk().is_none());
        drop(walk);
        assert!(path.walk().is_some());
    }
}
