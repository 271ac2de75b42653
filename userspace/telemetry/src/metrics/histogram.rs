//! Histograms with the buckets that Istio's proxies export (Envoy's default histogram buckets),
//! for times and sizes alike.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Exposition;

/// Upper bounds as exported, in milliseconds or bytes.
const BOUNDS: [&str; 19] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000",
    "30000", "60000", "300000", "600000", "1.8e+06", "3.6e+06",
];

/// The same bounds in seconds.
const BOUNDS_SECONDS: [&str; 19] = [
    "0.0005", "0.001", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5",
    "10", "30", "60", "300", "600", "1800", "3600",
];

/// Upper bounds of a duration, in microseconds.
pub(crate) static DURATION_MICROS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Upper bounds of a size, in bytes (nothing but 0 is below half a byte).
pub(crate) static BYTES: [u64; 19] = [
    0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000,
    600_000, 1_800_000, 3_600_000,
];

/// Counts of values by bucket, and their sum.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; 20],
    sum: AtomicU64,
}

/// A reading of a histogram: what is exported of it agrees with itself, and two families that
/// come from one histogram agree with each other.
pub(crate) struct Reading {
    cumulative: [u64; 20],
    sum: u64,
}

impl Histogram {
    pub(crate) fn observe(&self, value: u64, bounds: &[u64; 19]) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn read(&self) -> Reading {
        let mut total = 0;
        let cumulative = std::array::from_fn(|i| {
            total += self.buckets[i].load(Ordering::Relaxed);
            total
        });
        Reading { cumulative, sum: self.sum.load(Ordering::Relaxed) }
    }
}

/// In which unit a histogram's values are kept and exported.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Bytes,
    /// Kept in microseconds.
    Milliseconds,
    /// Kept in microseconds.
    Seconds,
}

impl Reading {
    #[expect(clippy::cast_precision_loss, reason = "a sum may lose its last digits as float")]
    pub(crate) fn expose(&self, out: &mut Exposition, names: &Names, labels: &str, unit: Unit) {
        let bounds = if matches!(unit, Unit::Seconds) { &BOUNDS_SECONDS } else { &BOUNDS };
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in bounds.iter().chain(&["+Inf"]).zip(&self.cumulative) {
            out.raw_sample(names.bucket, &format!("{labels}{comma}le=\"{bound}\""), count);
        }
        match unit {
            Unit::Bytes => out.raw_sample(names.sum, labels, self.sum),
            Unit::Milliseconds => out.raw_sample(names.sum, labels, self.sum as f64 / 1e3),
            Unit::Seconds => out.raw_sample(names.sum, labels, self.sum as f64 / 1e6),
        }
        out.raw_sample(names.count, labels, self.cumulative[19]);
    }
}

/// The names under which a histogram's samples are exported.
pub(crate) struct Names {
    pub(crate) bucket: &'static str,
    pub(crate) sum: &'static str,
    pub(crate) count: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names { bucket: "x_bucket", sum: "x_sum", count: "x_count" };

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let h = Histogram::default();
        for micros in [0, 500, 501, 1_000, 5_001, u64::from(u32::MAX) * 2] {
            h.observe(micros, &DURATION_MICROS);
        }
        assert_eq!(h.count(), 6);
        let mut out = Exposition::default();
        h.read().expose(&mut out, &NAMES, "a=\"b\"", Unit::Milliseconds);
        let text = out.take();
        for line in [
            "x_bucket{a=\"b\",le=\"0.5\"} 2",
            "x_bucket{a=\"b\",le=\"1\"} 4",
            "x_bucket{a=\"b\",le=\"5\"} 4",
            "x_bucket{a=\"b\",le=\"10\"} 5",
            "x_bucket{a=\"b\",le=\"3.6e+06\"} 5",
            "x_bucket{a=\"b\",le=\"+Inf\"} 6",
            "x_count{a=\"b\"} 6",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn bounds_agree_in_every_unit() {
        for (i, micros) in DURATION_MICROS.iter().enumerate() {
            let ms: f64 = BOUNDS[i].parse().unwrap();
            let s: f64 = BOUNDS_SECONDS[i].parse().unwrap();
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let micros = *micros as f64;
            assert!((ms * 1e3 - micros).abs() < 1e-6 && (s * 1e6 - micros).abs() < 1e-6);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let bytes = BYTES[i] as f64;
            assert!((bytes - ms.floor()).abs() < 1e-6);
        }
    }

    #[test]
    fn sums_are_in_the_unit_of_the_name() {
        let h = Histogram::default();
        h.observe(1_500, &DURATION_MICROS);
        let mut out = Exposition::default();
        h.read().expose(&mut out, &NAMES, "", Unit::Seconds);
        assert!(out.take().contains("x_sum 0.0015\n"));
        h.read().expose(&mut out, &NAMES, "", Unit::Milliseconds);
        assert!(out.take().contains("x_sum 1.5\n"));
    }
}
