//! How many certificates a caller may ask for: a bucket each.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Requests that a caller may send at once: the pods of a full node, and some.
const BURST: f64 = 500.0;
/// Requests per second beyond.
const RATE: f64 = 50.0;
/// Most callers that are told apart. Beyond, buckets that are full again are forgotten, and
/// newcomers share one.
const MAX_CALLERS: usize = 8192;

/// The buckets.
#[derive(Default)]
pub(super) struct Limit {
    buckets: Mutex<HashMap<String, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(&self, now: Instant) -> f64 {
        (self.left + now.duration_since(self.at).as_secs_f64() * RATE).min(BURST)
    }
}

impl Limit {
    /// Takes one from the caller's bucket; whether there was one.
    pub(super) fn take(&self, caller: &str) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        let mut name = caller;
        if buckets.len() >= MAX_CALLERS && !buckets.contains_key(caller) {
            buckets.retain(|_, bucket| bucket.refilled(now) < BURST);
            if buckets.len() >= MAX_CALLERS {
                name = "";
            }
        }
        let bucket = buckets.entry(name.to_owned()).or_insert(Bucket { left: BURST, at: now });
        let left = bucket.refilled(now);
        let allowed = left >= 1.0;
        *bucket = Bucket { left: if allowed { left - 1.0 } else { left }, at: now };
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_asks_too_much_waits_and_others_do_not() {
        let limit = Limit::default();
        let taken = (0..2000).filter(|_| limit.take("a")).count();
        assert_eq!(taken, 500);
        assert!(limit.take("b"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((0..2000).filter(|_| limit.take("a")).count(), 50);
        for n in 0..3 * MAX_CALLERS {
            limit.take(&n.to_string());
        }
        assert!(limit.buckets.lock().len() <= MAX_CALLERS + 1);
    }
}
