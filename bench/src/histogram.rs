//! A latency histogram of fixed size: 64 powers of two, 32 steps in each, so that every value
//! is kept within about 3 %.

use std::time::Duration;

const STEPS_LOG2: u32 = 5;
const STEPS: usize = 1 << STEPS_LOG2;
const BUCKETS: usize = 64 * STEPS;

/// Latencies in nanoseconds.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[index(nanos)] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    /// The latency in microseconds below which `quantile` (0 to 1) of all values lie.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        let rank = (quantile * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(i) / 1000.0;
            }
        }
        0.0
    }
}

fn index(nanos: u64) -> usize {
    let value = nanos.max(STEPS as u64);
    let power = 63 - value.leading_zeros();
    let step = (value >> (power - STEPS_LOG2)) as usize & (STEPS - 1);
    power as usize * STEPS + step
}

fn middle(index: usize) -> f64 {
    let (power, step) = (index / STEPS, index % STEPS);
    let width = (1u64 << power) as f64 / STEPS as f64;
    (1u64 << power) as f64 + (step as f64 + 0.5) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut histogram = Histogram::new();
        for micros in 1..=10_000u64 {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.01, 100.0)] {
            let got = histogram.quantile_us(quantile);
            assert!((got - expected).abs() / expected < 0.035, "{quantile}: {got} != {expected}");
        }
    }
}
