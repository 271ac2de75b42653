//! Where the time of a change goes, leg by leg.
//!
//! A change is written to the API server, which answers (`answer`) and tells those who watch
//! (`neighbour`: one who does nothing else). The controller's watch brings
//! it (`event`: the controller says in each Update when the oldest change in it came up), the Update
//! reaches a node (`node`), and the node's acknowledgement reaches the controller, which counts that
//! itself. All clocks are that of this machine. Where an Update brings several changes, the time of
//! the oldest counts for all: the leg before it looks shorter than it was, the controller's longer.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of the Unix epoch, as the controller counts them.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds of each change and node.
#[derive(Debug, Default)]
pub(crate) struct Legs {
    /// From the write to the API server's answer; once for each change.
    pub(crate) answer: Vec<u64>,
    /// From the write to a watch beside the controller's, and from the API server's answer to it.
    pub(crate) neighbour: [Vec<u64>; 2],
    /// From the write to the controller's event.
    pub(crate) event: Vec<u64>,
    /// From the API server's answer to the controller's event; 0 where the event was faster.
    pub(crate) behind: Vec<u64>,
    /// From the controller's event to the node.
    pub(crate) node: Vec<u64>,
    /// From the write to the node.
    pub(crate) all: Vec<u64>,
}

impl Legs {
    /// Another watch has brought a change.
    pub(crate) fn told(&mut self, written: u64, answered: Option<u64>, now: u64) {
        let [all, behind] = &mut self.neighbour;
        all.push(now.saturating_sub(written));
        behind.push(answered.map_or(0, |answered| now.saturating_sub(answered)));
    }

    /// A node has heard of a change.
    pub(crate) fn heard(&mut self, written: u64, answered: Option<u64>, event: u64, now: u64) {
        self.event.push(event.saturating_sub(written));
        self.behind.push(answered.map_or(0, |answered| event.saturating_sub(answered)));
        self.node.push(now.saturating_sub(event));
        self.all.push(now.saturating_sub(written));
    }
}

/// Milliseconds below which that part of all is.
pub(crate) fn quantile(times: &mut [u64], quantile: f64) -> f64 {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    let index = (last as f64 * quantile).round() as usize;
    times.get(index).map_or(0.0, |micros| *micros as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legs_add_up() {
        let mut legs = Legs::default();
        legs.heard(1_000, Some(3_000), 4_000, 9_000);
        // The event was faster than the answer, or the answer is not there yet.
        legs.heard(1_000, Some(5_000), 4_000, 9_000);
        legs.heard(1_000, None, 4_000, 9_000);
        assert_eq!(legs.event, [3_000; 3]);
        assert_eq!(legs.behind, [1_000, 0, 0]);
        assert_eq!((legs.node[0], legs.all[0]), (5_000, 8_000));
        legs.told(1_000, Some(3_000), 3_500);
        legs.told(1_000, None, 3_500);
        assert_eq!(legs.neighbour, [vec![2_500; 2], vec![500, 0]]);
    }

    #[test]
    fn quantiles() {
        let mut times: Vec<u64> = (0..=100).rev().map(|n| n * 1_000).collect();
        assert_eq!(quantile(&mut times, 0.5), 50.0);
        assert_eq!(quantile(&mut times, 0.99), 99.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
