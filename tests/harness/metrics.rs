//! Prometheus text, parsed and asked.

use std::collections::BTreeMap;

/// What the kernel programs decide of an application's `connect()` to something that is not of its
/// own pod: one of them each.
const DECISIONS: [&str; 10] = [
    "captured_outbound",
    "passed_excluded_outbound",
    "refused_unknown_netns",
    "refused_no_outbound_listener",
    "refused_no_memory",
    "refused_bound_device",
    "refused_no_source",
    "refused_forged_source",
    "refused_no_settings",
    "refused_flows_full",
];

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// A series and its value.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

impl Metrics {
    /// Parses the text exposition format; lines that are none are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        Self { samples: lines.filter_map(parse_line).collect() }
    }

    /// Samples of `name` whose labels contain all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| {
            s.name == name
                && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The sum of those samples.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|s| s.value).sum()
    }

    /// How often the kernel programs decided of a `connect()`. A SYN of an application that they did
    /// not see is missing in it, whatever became of it.
    #[must_use]
    pub fn decided(&self) -> u64 {
        let count = |event| self.sum("fairlead_capture_events_total", &[("event", event)]);
        DECISIONS.into_iter().map(count).sum::<f64>() as u64
    }

    /// This scrape with another one's samples added: what both nodes know.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.samples.extend(other.samples);
        self
    }

    /// All samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let (series, rest) = match line.find('{') {
        Some(open) => {
            let close = closing(line, open)?;
            ((&line[..open], Some(&line[open + 1..close])), &line[close + 1..])
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            ((name, None), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    let labels = series.1.map(parse_labels).unwrap_or_default();
    Some(Sample { name: series.0.to_owned(), labels, value })
}

/// Where the brace that opens at `open` closes, quoted text left aside.
fn closing(line: &str, open: usize) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in line.char_indices().skip_while(|(i, _)| *i <= open) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(i),
            _ => {}
        }
    }
    None
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=') {
            key.push(c);
        }
        if chars.next().is_none() || chars.next() != Some('"') {
            return labels;
        }
        let mut value = String::new();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => match chars.next() {
                    Some('n') => value.push('\n'),
                    Some(c) => value.push(c),
                    None => return labels,
                },
                c => value.push(c),
            }
        }
        labels.insert(key.trim_matches([',', ' ']).to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_parsed() {
        let m = Metrics::parse(
            "# HELP a b\na{x=\"1\",y=\"q\\\"}\"} 3\na{x=\"2\",y=\"\"} 4.5 1700000000\nb 7\nnonsense\n",
        );
        assert_eq!(m.samples().len(), 3);
        assert_eq!(m.sum("a", &[]), 7.5);
        assert_eq!(m.sum("a", &[("y", "q\"}")]), 3.0);
        assert_eq!(m.sum("b", &[]), 7.0);
        assert_eq!(m.sum("a", &[("z", "1")]), 0.0);
    }
}
