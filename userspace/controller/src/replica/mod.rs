//! What nodes of all replicas say, where status is written, and the addresses that they claim,
//! everywhere: `fairlead.replica.v1.Verdicts`, as its proto file documents it.
//!
//! The replica that leads takes streams ([`VerdictsService`]), the others keep one to it
//! ([`Follower`]). What is told, and what is made of it, is in [`crate::scope`].

mod follower;
mod service;

use std::time::Duration;

use fairlead_telemetry::{Counter, Gauge, Registry};

pub use follower::{Follower, FollowerSettings};
pub use service::VerdictsService;

use crate::scope::Heard;

/// Least time between two messages with claims of addresses, which somebody may be about to connect
/// to; what changes meanwhile goes together.
const CLAIMS_GAP: Duration = Duration::from_millis(10);

/// The path of the service.
pub const SERVICE: &str = "/fairlead.replica.v1.Verdicts/";

/// Metrics of either side.
#[derive(Clone, Debug, Default)]
pub struct ReplicaMetrics {
    /// Replicas that have told all, at the one that leads.
    reporting: Gauge,
    taken: Counter,
    refused: Counter,
    sent: Counter,
    ended: Counter,
    claims: Counter,
    claims_refused: Counter,
}

impl ReplicaMetrics {
    /// Exported by `registry`.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let help = "Other replicas that tell this one what their nodes say; it leads.";
        let reporting = registry.gauge("fairlead_replicas_reporting", help, &[]);
        let metrics = Self { reporting, ..Self::default() };
        metrics.register(registry);
        metrics
    }

    /// Claims of addresses have been told.
    fn heard(&self, heard: Heard) {
        self.claims.add(heard.new);
        self.claims_refused.add(heard.refused);
    }

    fn register(&self, registry: &Registry) {
        for (name, help, counter) in [
            ("fairlead_replica_reports_taken_total", "Reports of other replicas.", &self.taken),
            (
                "fairlead_replica_reports_refused_total",
                "Streams of other replicas that were refused or ended for what they said.",
                &self.refused,
            ),
            ("fairlead_replica_reports_sent_total", "Reports to the leading replica.", &self.sent),
            (
                "fairlead_replica_streams_ended_total",
                "Streams to the leading replica that ended or did not come about.",
                &self.ended,
            ),
            (
                "fairlead_replica_claims_heard_total",
                "Addresses of pods that other replicas told of before the API server.",
                &self.claims,
            ),
            (
                "fairlead_replica_claims_refused_total",
                "Addresses of pods told by other replicas that cannot be, or had no room.",
                &self.claims_refused,
            ),
        ] {
            registry.adopt(name, help, counter);
        }
    }
}

#[cfg(test)]
mod tests;
