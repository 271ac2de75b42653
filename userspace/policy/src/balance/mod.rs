//! Which endpoint gets the next connection or request (DestinationRule `loadBalancer.simple`).
//!
//! Lock-free: a counter per cluster and one per endpoint, both surviving a change of snapshot.

mod load;
mod pick;

pub use load::{Load, LoadGuard};
pub use pick::{Candidate, MAX_EXCLUDED, pick};

use std::sync::atomic::{AtomicUsize, Ordering};

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// `ROUND_ROBIN`: strictly cyclic.
    RoundRobin,
    /// `RANDOM`.
    Random,
    /// `LEAST_REQUEST` (and `LEAST_CONN`, `UNSPECIFIED`): the least busy of some random ones.
    LeastRequest {
        /// How many are compared; Envoy's default is 2.
        choices: u32,
    },
    /// `PASSTHROUGH`: the address that the application asked for; there is nothing to pick.
    Passthrough,
}

impl Default for LoadBalancer {
    /// Istio's default.
    fn default() -> Self {
        Self::LeastRequest { choices: 2 }
    }
}

/// What a balancer remembers between two picks.
#[derive(Debug, Default)]
pub struct BalancerState {
    next: AtomicUsize,
}

impl BalancerState {
    /// A state whose round robin begins at `offset`, so that nodes do not march in step.
    #[must_use]
    pub fn starting_at(offset: usize) -> Self {
        Self { next: AtomicUsize::new(offset) }
    }

    fn advance(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
