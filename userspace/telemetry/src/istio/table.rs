//! Series by label set: bounded in number, sharded, forgetting what has been idle for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::BuildHasher;

use super::{HttpSeries, TcpSeries, TrafficLabels};
use crate::metrics::Counter;

const SHARDS: usize = 16;

/// What a table needs of a series.
pub(crate) trait Series: Send + Sync {
    fn new(labels: TrafficLabels) -> Self;
    /// A number that changes with every event.
    fn activity(&self) -> u64;
}

impl Series for HttpSeries {
    fn new(labels: TrafficLabels) -> Self {
        Self::new(labels)
    }

    fn activity(&self) -> u64 {
        self.requests()
    }
}

impl Series for TcpSeries {
    fn new(labels: TrafficLabels) -> Self {
        Self::new(labels)
    }

    fn activity(&self) -> u64 {
        self.events()
    }
}

struct Entry<S> {
    series: Arc<S>,
    /// Activity when it was last seen to change, and when that was.
    seen: (u64, Instant),
}

type Shard<S> = RwLock<HashMap<TrafficLabels, Entry<S>, RandomState>>;

pub(crate) struct Table<S> {
    shards: [Shard<S>; SHARDS],
    hasher: RandomState,
    per_shard: usize,
    /// Stands for everything beyond the bound.
    overflow: Arc<S>,
    /// Lookups that ended at the overflow series.
    pub(crate) overflowed: Counter,
}

impl<S: Series> Table<S> {
    /// A table of at most about `bound` series (the bound is kept per shard).
    pub(crate) fn new(bound: usize, overflowed: Counter) -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::default(),
            per_shard: bound.div_ceil(SHARDS),
            overflow: Arc::new(S::new(TrafficLabels::overflow())),
            overflowed,
        }
    }

    pub(crate) fn get(&self, labels: &TrafficLabels) -> Arc<S> {
        let hash = self.hasher.hash_one(labels);
        // The top bits choose the shard; the map inside uses the low ones of its own hash.
        let shard = &self.shards[(hash >> 59) as usize % SHARDS];
        if let Some(entry) = shard.read().get(labels) {
            return Arc::clone(&entry.series);
        }
        let mut shard = shard.write();
        if let Some(entry) = shard.get(labels) {
            return Arc::clone(&entry.series);
        }
        if shard.len() >= self.per_shard {
            self.overflowed.inc();
            return Arc::clone(&self.overflow);
        }
        let series = Arc::new(S::new(labels.clone()));
        let entry = Entry { series: Arc::clone(&series), seen: (0, Instant::now()) };
        shard.insert(labels.clone(), entry);
        series
    }

    /// Every series, the overflow last when it has been used.
    pub(crate) fn all(&self) -> Vec<Arc<S>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().values().map(|e| Arc::clone(&e.series)));
        }
        if self.overflow.activity() > 0 {
            all.push(Arc::clone(&self.overflow));
        }
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }

    /// Drops the series that nobody holds and that have been idle for `idle`. Under the shard's
    /// write lock nobody can take a new handle, so no event is lost.
    pub(crate) fn sweep(&self, now: Instant, idle: Duration) {
        for shard in &self.shards {
            shard.write().retain(|_, entry| {
                let activity = entry.series.activity();
                if activity != entry.seen.0 || Arc::strong_count(&entry.series) > 1 {
                    entry.seen = (activity, now);
                    return true;
                }
                now.saturating_duration_since(entry.seen.1) < idle
            });
        }
    }
}
