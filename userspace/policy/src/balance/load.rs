//! How busy an endpoint is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests and connections on their way to one endpoint. Clones count together, so that a new
/// snapshot goes on where the last one was.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicU32>);

impl Load {
    /// Counts one until the guard is dropped.
    pub fn enter(&self) -> LoadGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        LoadGuard(Arc::clone(&self.0))
    }

    /// How many there are now.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request or connection that is on its way.
#[derive(Debug)]
#[must_use = "the load is counted as long as the guard lives"]
pub struct LoadGuard(Arc<AtomicU32>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
