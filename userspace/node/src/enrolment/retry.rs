//! When to try again.

use std::time::{Duration, Instant};

/// A namespace that is not there yet usually is in a moment: a pod is starting.
const SOON: Duration = Duration::from_millis(25);
/// How long it is looked for that often.
const SOON_FOR: Duration = Duration::from_secs(10);
/// Longest pause.
const LATEST: Duration = Duration::from_secs(5);

/// Attempts at something that has failed.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub(super) since: Instant,
    next: Instant,
    pause: Duration,
    pub(super) reason: String,
}

impl Retry {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, next: now, pause: SOON, reason: String::new() }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Notes a failure; whether its reason is news. An `error` is tried more and more rarely, an
    /// absence often at first.
    pub(super) fn failed(&mut self, now: Instant, reason: String, error: bool) -> bool {
        let waiting = now.saturating_duration_since(self.since);
        self.pause = if error || waiting >= SOON_FOR { (self.pause * 2).min(LATEST) } else { SOON };
        self.next = now + self.pause;
        let news = self.reason != reason;
        self.reason = reason;
        news
    }
}
