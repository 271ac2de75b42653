//! Medians and ratios, as a table for people and JSON for scripts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::run::{Cell, Memory, Sample};

/// Everything that a run showed.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) version: &'static str,
    pub(crate) cells: Vec<Cell>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) memory: Vec<Memory>,
}

/// The figure that a cell is about.
fn figure(unit: &str, sample: &Sample) -> f64 {
    let outcome = &sample.outcome;
    match unit {
        "p99 µs" => outcome.p99_us,
        "MB/s" => outcome.bytes as f64 / outcome.seconds / 1e6,
        _ => outcome.requests as f64 / outcome.seconds,
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl Report {
    /// Tables in Markdown: figures with their ratio to direct traffic, then CPU, then memory.
    pub(crate) fn table(&self, baselines: &BTreeMap<&str, &str>, order: &[&str]) -> String {
        let mut text = String::new();
        for pinned in [false, true] {
            if !self.samples.iter().any(|s| s.pinned == pinned) {
                continue;
            }
            let title = if pinned { "each node pinned to a core" } else { "free" };
            _ = writeln!(text, "\n### {title}\n");
            self.figures(&mut text, pinned, baselines, order);
            _ = writeln!(text, "\nCPU seconds per 100,000 requests, processes in between:\n");
            self.cpu(&mut text, pinned, baselines, order);
        }
        if !self.memory.is_empty() {
            _ = writeln!(text, "\n### memory\n\n| variant | at rest | per idle connection |");
            _ = writeln!(text, "|---|---:|---:|");
            for m in &self.memory {
                let rest = m.at_rest as f64 / 1e6;
                let each = m.per_connection / 1024.0;
                _ = writeln!(text, "| {} | {rest:.1} MB | {each:.1} KiB |", m.variant);
            }
        }
        let errors: u64 = self.samples.iter().map(|s| s.outcome.errors).sum();
        _ = writeln!(text, "\nFailed requests in all: {errors}.");
        for sample in self.samples.iter().filter(|s| s.outcome.errors > 0) {
            let Sample { cell, variant, round, outcome, .. } = sample;
            _ = writeln!(text, "- {cell}, {variant}, round {}: {}", round + 1, outcome.errors);
        }
        text
    }

    fn median_of(
        &self,
        cell: &str,
        variant: &str,
        pinned: bool,
        f: impl Fn(&Sample) -> f64,
    ) -> Option<f64> {
        let matching = self
            .samples
            .iter()
            .filter(|s| s.cell == cell && s.variant == variant && s.pinned == pinned);
        median(matching.map(f).collect())
    }

    fn head(text: &mut String, order: &[&str]) {
        _ = writeln!(text, "| | {} |", order.join(" | "));
        _ = writeln!(text, "|---|{}", "---:|".repeat(order.len()));
    }

    fn figures(
        &self,
        text: &mut String,
        pinned: bool,
        baselines: &BTreeMap<&str, &str>,
        order: &[&str],
    ) {
        Self::head(text, order);
        for cell in &self.cells {
            let mut row = format!("| {} ({}) ", cell.name, cell.unit);
            for variant in order {
                let value =
                    |v: &str| self.median_of(&cell.name, v, pinned, |s| figure(cell.unit, s));
                let shown = value(variant);
                let base = baselines.get(variant).and_then(|b| value(b));
                row += &match (shown, base) {
                    (Some(shown), Some(base)) if base > 0.0 && baselines[variant] != *variant => {
                        format!("| {shown:.0} ({:.2}) ", shown / base)
                    }
                    (Some(shown), _) => format!("| {shown:.0} "),
                    (None, _) => "| - ".to_owned(),
                };
            }
            _ = writeln!(text, "{row}|");
        }
    }

    fn cpu(
        &self,
        text: &mut String,
        pinned: bool,
        baselines: &BTreeMap<&str, &str>,
        order: &[&str],
    ) {
        let proxied: Vec<&str> =
            order.iter().filter(|v| baselines.get(**v) != Some(*v)).copied().collect();
        Self::head(text, &proxied);
        for cell in self.cells.iter().filter(|c| c.unit != "MB/s") {
            let mut row = format!("| {} ", cell.name);
            for variant in &proxied {
                let per = |s: &Sample| s.proxy_cpu / s.outcome.requests.max(1) as f64 * 1e5;
                row += &self
                    .median_of(&cell.name, variant, pinned, per)
                    .map_or("| - ".to_owned(), |v| format!("| {v:.2} "));
            }
            _ = writeln!(text, "{row}|");
        }
    }
}
