//! How busy an endpoint is.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Candidate;

/// Requests and connections on their way to one endpoint. It is a part of the endpoint; whoever
/// counts keeps that.
#[derive(Debug, Default)]
pub struct Load(AtomicU32);

impl Load {
    /// How many there are now.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request or connection that is on its way to a candidate.
#[derive(Debug)]
#[must_use = "the load is counted as long as the guard lives"]
pub struct LoadGuard<C: Candidate>(C);

impl<C: Candidate> LoadGuard<C> {
    /// Counts one until the guard is dropped.
    pub fn enter(candidate: C) -> Self {
        candidate.load().0.fetch_add(1, Ordering::Relaxed);
        Self(candidate)
    }
}

impl<C: Candidate> Drop for LoadGuard<C> {
    fn drop(&mut self) {
        self.0.load().0.fetch_sub(1, Ordering::Relaxed);
    }
}
