//! How the node stands with its controller: for `/ready`, `/config_dump` and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::process::unix;

/// The stand of things. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Status(Arc<Mutex<Facts>>);

/// What there is to know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The controller, as it was named.
    pub controller: String,
    /// The replica that the stream goes to.
    pub connected: Option<SocketAddr>,
    /// Whether everything that it said is in force.
    pub current: bool,
    /// When the node was last known to be up to date; `None`: it has never been told anything.
    pub as_of: Option<SystemTime>,
    /// Whether what is in force is what an earlier daemon kept.
    pub from_state: bool,
    /// Why the last stream ended, or could not be had.
    pub failure: Option<String>,
    /// Streams that were opened.
    pub streams: u64,
    /// Updates that were applied.
    pub updates: u64,
    /// Objects that came, and that were removed.
    pub objects: [u64; 2],
    /// Objects that were refused.
    pub rejected: u64,
    /// From the change in the cluster to its being in force here, of the last Update.
    pub latency: Duration,
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Addresses that the controller was asked about: it knew something, it did not, it did not
    /// answer.
    pub lookups: [u64; 3],
}

impl Facts {
    /// How old the configuration is: zero while a controller keeps it current.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        if self.current {
            return Some(Duration::ZERO);
        }
        let as_of = self.as_of?;
        Some(SystemTime::now().duration_since(as_of).unwrap_or_default())
    }

    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        let failure = self.failure.as_deref().unwrap_or("no answer yet");
        match (self.age(), self.connected) {
            (Some(_), Some(at)) if self.current => {
                format!("configuration is current, from {} at {at}", self.controller)
            }
            (None, Some(at)) => format!("{} at {at} is sending the configuration", self.controller),
            (None, None) => {
                format!("there is no configuration yet: {}: {failure}", self.controller)
            }
            (Some(age), Some(at)) => {
                format!("configuration is {} s old; {at} is bringing it up to date", age.as_secs())
            }
            (Some(age), None) => format!(
                "configuration is {} s old{}: {}: {failure}",
                age.as_secs(),
                if self.from_state { ", from the state on disk" } else { "" },
                self.controller,
            ),
        }
    }

    /// As the admin API shows it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "controller": self.controller,
            "connectedTo": self.connected.map(|a| a.to_string()),
            "current": self.current,
            "ageSeconds": self.age().map(|age| age.as_secs()),
            "asOf": self.as_of.map(unix),
            "fromState": self.from_state,
            "lastFailure": self.failure,
        })
    }
}

impl Status {
    pub(super) fn new(controller: String) -> Self {
        Self(Arc::new(Mutex::new(Facts { controller, ..Facts::default() })))
    }

    /// As it is now.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.0.lock().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock());
    }

    /// The stream has ended, or there was none.
    pub(super) fn lost(&self, reason: String) {
        self.update(|facts| {
            if facts.current {
                facts.as_of = Some(SystemTime::now());
            }
            facts.current = false;
            facts.connected = None;
            facts.failure = Some(reason);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_how_old_and_why() {
        let status = Status::new("https://c:1".into());
        assert!(status.facts().words().contains("no configuration yet"));
        assert_eq!(status.facts().age(), None);
        status.update(|f| {
            f.as_of = Some(SystemTime::now() - Duration::from_secs(90));
            f.from_state = true;
            f.failure = Some("refused".into());
        });
        let words = status.facts().words();
        assert!(words.contains("90 s old, from the state on disk"), "{words}");
        assert!(words.ends_with("https://c:1: refused"), "{words}");
        status.update(|f| {
            f.current = true;
            f.connected = Some("10.0.0.1:1".parse().unwrap());
        });
        assert_eq!(status.facts().age(), Some(Duration::ZERO));
        assert!(status.facts().words().contains("current, from https://c:1 at 10.0.0.1:1"));
        status.lost("gone".into());
        assert!(status.facts().age().unwrap() < Duration::from_secs(5));
        assert_eq!(status.facts().json()["lastFailure"], "gone");
    }
}
