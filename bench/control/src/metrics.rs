//! What processes say of themselves, in Prometheus' text.

use anyhow::{Context, Result};

/// All metrics of a process at one time.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The value of a sample, named with its labels.
    pub(crate) fn value(&self, name: &str) -> Result<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    }

    /// The sum of all samples of a name, whatever their labels.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of_name = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        };
        self.0.lines().filter_map(of_name).sum()
    }

    /// Upper bounds of a histogram's buckets, and how many values are up to each.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let head = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(&head)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.trim().parse().ok()?))
        };
        self.0.lines().filter_map(bucket).collect()
    }

    /// The quantile of what a histogram has counted since `before`, in milliseconds: within a
    /// bucket its values are taken as spread evenly, as Prometheus does.
    pub(crate) fn quantile(&self, before: &Self, name: &str, quantile: f64) -> f64 {
        let earlier = before.buckets(name);
        let mut buckets = self.buckets(name);
        for ((_, count), (_, earlier)) in buckets.iter_mut().zip(&earlier) {
            *count -= earlier;
        }
        let total = buckets.last().map_or(0.0, |(_, count)| *count);
        let wanted = total * quantile;
        let (mut floor, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted && count > below {
                let part = (wanted - below) / (count - below);
                let width = if bound.is_finite() { bound - floor } else { 0.0 };
                return (floor + width * part) * 1e3;
            }
            (floor, below) = (bound, count);
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_what_came_since() {
        let text = |counts: [u32; 3]| {
            let [a, b, all] = counts;
            Metrics(format!(
                "x_bucket{{le=\"0.1\"}} {a}\nx_bucket{{le=\"0.3\"}} {b}\n\
                 x_bucket{{le=\"+Inf\"}} {all}\nx_count {all}\ny{{k=\"1\"}} 2\ny{{k=\"2\"}} 3\n"
            ))
        };
        let (before, after) = (text([10, 10, 10]), text([10, 110, 110]));
        assert_eq!(after.quantile(&before, "x", 0.5).round(), 200.0);
        assert_eq!(after.quantile(&before, "x", 1.0).round(), 300.0);
        assert_eq!(text([10, 10, 20]).quantile(&before, "x", 0.5), 300.0);
        assert_eq!(before.quantile(&before, "x", 0.5), 0.0);
        assert_eq!(after.sum("y"), 5.0);
        assert_eq!(after.value("x_count").unwrap(), 110.0);
        assert!(after.value("z").is_err());
    }
}
