//! Whether a destination can still be reached as when its sessions were opened.
//!
//! A rule that comes later (a NetworkPolicy) leaves open connections alone in most policy engines:
//! they accept what is established. New connections of the application would go around it as streams
//! of an open session. So while a session takes new streams, the way is walked again from time to
//! time: a session like it is opened and closed. When that is refused or gets no answer, no new
//! stream starts on the old ones; what is open goes on, as it would without a mesh.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use super::limits;
use crate::random::random;

/// What is known of the way to a destination.
pub(super) struct Path {
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
pub(super) enum Known {
    /// Walked a moment ago.
    Fresh,
    /// To be walked again; sessions go on meanwhile.
    Due,
    /// Not walked for so long that sessions take no new streams.
    Stale,
}

/// Somebody walks, until this is dropped.
pub(super) struct Walk(Arc<Path>);

impl Path {
    pub(super) fn new() -> Self {
        Self {
            walked: AtomicU64::new(millis(Instant::now())),
            walking: AtomicBool::new(false),
            due: whole(limits::PATH_DUE) + random() % whole(limits::PATH_SPREAD),
        }
    }

    /// A session could be opened.
    pub(super) fn walked(&self) {
        self.walked.store(millis(Instant::now()), Ordering::Relaxed);
    }

    pub(super) fn known(&self, now: Instant) -> Known {
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
    pub(super) fn walk(self: &Arc<Self>) -> Option<Walk> {
        // Read first: every stream asks while somebody walks.
        let free =
            !self.walking.load(Ordering::Relaxed) && !self.walking.swap(true, Ordering::AcqRel);
        free.then(|| Walk(Arc::clone(self)))
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
