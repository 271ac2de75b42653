//! A small registry: counters and gauges with fixed label sets, and collectors that are asked at
//! scrape time. Traffic series live in their own tables (`crate::istio`), which are bounded and
//! forget what is idle.

mod expose;
mod histogram;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;

pub(crate) use expose::push_label;
pub use expose::{Exposition, Kind};
pub(crate) use histogram::{BYTES, DURATION_MICROS, Histogram, Names, Unit};

/// Label sets that one registry holds at most; registrations beyond it get a handle that counts
/// but is not exported.
pub(crate) const MAX_REGISTERED: usize = 2048;

/// A counter that only grows. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
enum Value {
    Counter(Counter),
    Gauge(Gauge),
}

struct Family {
    help: &'static str,
    kind: Kind,
    /// By label set, rendered without braces.
    values: BTreeMap<String, Value>,
}

type Collector = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// Counters and gauges by name. Registering is for start-up and set-up paths; the handles are for
/// the rest.
#[derive(Default)]
pub struct Registry {
    families: RwLock<BTreeMap<&'static str, Family>>,
    collectors: RwLock<Vec<Collector>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("families", &self.families.read().len()).finish()
    }
}

impl Registry {
    /// The counter `name` with these labels: a new one, or the one that was registered before.
    #[must_use]
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Counter {
        let counter = Counter::default();
        match self.register(name, help, Kind::Counter, labels, Value::Counter(counter.clone())) {
            Some(Value::Counter(known)) => known,
            _ => counter,
        }
    }

    /// Exports a counter that was made elsewhere, unless one of that name is known.
    pub fn adopt(&self, name: &'static str, help: &'static str, counter: &Counter) {
        self.register(name, help, Kind::Counter, &[], Value::Counter(counter.clone()));
    }

    /// The gauge `name` with these labels, likewise.
    #[must_use]
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        let gauge = Gauge::default();
        match self.register(name, help, Kind::Gauge, labels, Value::Gauge(gauge.clone())) {
            Some(Value::Gauge(known)) => known,
            _ => gauge,
        }
    }

    /// Has `collect` write its families at every scrape.
    pub fn collector(&self, collect: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        self.collectors.write().push(Box::new(collect));
    }

    /// Stores `value` unless the label set is known: then returns the known one.
    fn register(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&str, &str)],
        value: Value,
    ) -> Option<Value> {
        let mut families = self.families.write();
        let size: usize = families.values().map(|f| f.values.len()).sum();
        let family =
            families.entry(name).or_insert_with(|| Family { help, kind, values: BTreeMap::new() });
        let key = expose::label_text(labels);
        match family.values.get(&key) {
            Some(Value::Counter(known)) => return Some(Value::Counter(known.clone())),
            Some(Value::Gauge(known)) => return Some(Value::Gauge(known.clone())),
            None => {}
        }
        if size >= MAX_REGISTERED || family.kind != kind {
            tracing::warn!(metric = name, "metric not exported: registry full or kind differs");
            return None;
        }
        family.values.insert(key, value);
        None
    }

    /// Writes every family.
    pub fn expose(&self, out: &mut Exposition) {
        for (name, family) in self.families.read().iter() {
            out.family(name, family.help, family.kind);
            for (labels, value) in &family.values {
                match value {
                    Value::Counter(c) => out.raw_sample(name, labels, c.get()),
                    Value::Gauge(g) => out.raw_sample(name, labels, g.get()),
                }
            }
        }
        for collect in self.collectors.read().iter() {
            collect(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_set_is_registered_once() {
        let registry = Registry::default();
        let first = registry.counter("fairlead_x_total", "X.", &[("a", "1")]);
        let again = registry.counter("fairlead_x_total", "X.", &[("a", "1")]);
        let other = registry.counter("fairlead_x_total", "X.", &[("a", "2\"\n\\")]);
        first.inc();
        again.add(2);
        other.inc();
        registry.gauge("fairlead_y", "Y.", &[]).set(-4);
        registry.collector(|out| {
            out.family("fairlead_z", "Z.", Kind::Gauge);
            out.sample("fairlead_z", &[("k", "v")], 1.5);
        });
        let mut out = Exposition::default();
        registry.expose(&mut out);
        assert_eq!(
            out.take(),
            "# HELP fairlead_x_total X.\n# TYPE fairlead_x_total counter\n\
             fairlead_x_total{a=\"1\"} 3\nfairlead_x_total{a=\"2\\\"\\n\\\\\"} 1\n\
             # HELP fairlead_y Y.\n# TYPE fairlead_y gauge\nfairlead_y -4\n\
             # HELP fairlead_z Z.\n# TYPE fairlead_z gauge\nfairlead_z{k=\"v\"} 1.5\n"
        );
    }

    #[test]
    fn registrations_are_bounded() {
        let registry = Registry::default();
        for i in 0..MAX_REGISTERED + 10 {
            registry.counter("fairlead_many_total", "Many.", &[("i", &i.to_string())]).inc();
        }
        let mut out = Exposition::default();
        registry.expose(&mut out);
        assert_eq!(out.take().lines().count(), MAX_REGISTERED + 2);
    }
}
