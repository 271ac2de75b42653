//! Metrics of the controller, under the names that Istio's dashboards know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fairlead_api::Kind;
use fairlead_telemetry::{Counter, Exposition, Gauge, Kind as Family, Registry};
use parking_lot::Mutex;

use crate::scope::World;

/// Bounds of times, in seconds, as Istio has them.
const SECONDS: [(f64, &str); 8] = [
    (0.01, "0.01"),
    (0.1, "0.1"),
    (1.0, "1"),
    (3.0, "3"),
    (5.0, "5"),
    (10.0, "10"),
    (20.0, "20"),
    (30.0, "30"),
];
/// Bounds of the time from a change to a node's word, finer where it matters.
const CONVERGENCE: [(f64, &str); 11] = [
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.2, "0.2"),
    (0.5, "0.5"),
    (1.0, "1"),
    (3.0, "3"),
    (10.0, "10"),
    (30.0, "30"),
];
/// Bounds of sizes, in bytes.
const BYTES: [(f64, &str); 6] =
    [(1.0, "1"), (1e4, "10000"), (1e6, "1e+06"), (4e6, "4e+06"), (1e7, "1e+07"), (4e7, "4e+07")];

/// Counts of values up to each bound, and their sum.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [(f64, &'static str)],
    /// One more than bounds, for what is beyond.
    buckets: Vec<AtomicU64>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [(f64, &'static str)]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0) }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times and sizes are positive and small"
    )]
    fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|(bound, _)| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum may lose its last digits as float")]
    fn expose(&self, out: &mut Exposition, name: &str, labels: &[(&str, &str)]) {
        let mut count = 0;
        let bounds = self.bounds.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (bound, bucket) in bounds.zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
            out.sample(&format!("{name}_bucket"), &labels, count);
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        out.sample(&format!("{name}_sum"), labels, sum);
        out.sample(&format!("{name}_count"), labels, count);
    }
}

/// Istio's types of pushes, with what of ours they stand for.
const TYPES: [&str; 4] = ["cds", "eds", "lds", "rds"];

fn push_type(kind: Kind) -> usize {
    match kind {
        Kind::Service | Kind::DestinationRule | Kind::ServiceEntry => 0,
        Kind::EndpointSlice | Kind::Pod | Kind::Node | Kind::WorkloadEntry => 1,
        Kind::VirtualService => 3,
        _ => 2,
    }
}

/// The metrics.
pub struct Metrics {
    registry: Arc<Registry>,
    connected: Gauge,
    pushes: [Counter; 4],
    rejects: Counter,
    expired_nonces: Counter,
    convergence: Histogram,
    queue_time: Histogram,
    push_time: [Histogram; 4],
    update_bytes: Histogram,
    sent_bytes: Counter,
    events: Mutex<BTreeMap<(Kind, &'static str), Counter>>,
    unchanged: Counter,
    watch_errors: Counter,
    relists: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers everything; the numbers of objects are those of `world`.
    #[must_use]
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        let registry = Arc::new(Registry::default());
        let version = env!("CARGO_PKG_VERSION");
        registry
            .gauge("pilot_info", "Version of the control plane.", &[("version", version)])
            .set(1);
        registry
            .gauge("istio_build", "Version.", &[("component", "pilot"), ("tag", version)])
            .set(1);
        let connected =
            registry.gauge("pilot_xds", "Nodes with a stream.", &[("version", version)]);
        let pushes = TYPES.map(|kind| {
            let help = "Updates to nodes, by what is in them.";
            registry.counter("pilot_xds_pushes", help, &[("type", kind)])
        });
        let metrics = Arc::new(Self {
            connected,
            pushes,
            rejects: registry.counter(
                "pilot_total_xds_rejects",
                "Objects that a node refused.",
                &[],
            ),
            expired_nonces: registry.counter(
                "pilot_xds_expired_nonce",
                "Answers to Updates that nobody waits for.",
                &[],
            ),
            convergence: Histogram::new(&CONVERGENCE),
            queue_time: Histogram::new(&CONVERGENCE),
            push_time: [(); 4].map(|()| Histogram::new(&SECONDS)),
            update_bytes: Histogram::new(&BYTES),
            sent_bytes: registry.counter(
                "fairlead_controller_sent_bytes_total",
                "Bytes of Updates.",
                &[],
            ),
            events: Mutex::default(),
            unchanged: registry.counter(
                "fairlead_controller_unchanged_events_total",
                "Events of objects in which nothing changed that nodes read.",
                &[],
            ),
            watch_errors: registry.counter(
                "fairlead_controller_watch_errors_total",
                "Failed lists and watches; they are tried again.",
                &[],
            ),
            relists: registry.counter(
                "fairlead_controller_relists_total",
                "Kinds that were listed again, as the API server did not remember what had been seen.",
                &[],
            ),
            registry,
        });
        let world = Arc::downgrade(world);
        let weak = Arc::downgrade(&metrics);
        metrics.registry.collector(move |out| {
            if let Some(world) = world.upgrade() {
                expose_world(&world, out);
            }
            if let Some(metrics) = weak.upgrade() {
                metrics.expose(out);
            }
            expose_process(out);
        });
        metrics
    }

    /// Where other parts register theirs.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// All of them, as text.
    #[must_use]
    pub fn scrape(&self) -> String {
        let mut out = Exposition::default();
        self.registry.expose(&mut out);
        out.take()
    }

    pub(crate) fn connected(&self, by: i64) {
        self.connected.add(by);
    }

    /// An Update goes out.
    #[expect(clippy::cast_precision_loss, reason = "sizes are small")]
    pub(crate) fn pushed(
        &self,
        kinds: &BTreeMap<Kind, usize>,
        bytes: usize,
        oldest: Option<Instant>,
    ) {
        for kind in types(kinds) {
            self.pushes[kind].inc();
        }
        self.update_bytes.observe(bytes as f64);
        self.sent_bytes.add(bytes as u64);
        if let Some(oldest) = oldest {
            self.queue_time.observe(oldest.elapsed().as_secs_f64());
        }
    }

    /// An Update has been handed to the connection.
    pub(crate) fn push_took(&self, kinds: &BTreeMap<Kind, usize>, took: Duration) {
        for kind in types(kinds) {
            self.push_time[kind].observe(took.as_secs_f64());
        }
    }

    /// A node refuses objects.
    pub(crate) fn refused(&self, objects: usize) {
        self.rejects.add(objects as u64);
    }

    /// A node has answered.
    pub(crate) fn acknowledged(&self, since_change: Option<Duration>, refused: usize) {
        if let Some(since) = since_change {
            self.convergence.observe(since.as_secs_f64());
        }
        self.refused(refused);
    }

    pub(crate) fn expired_nonce(&self) {
        self.expired_nonces.inc();
    }

    /// The API server told of an object: `add`, `update` or `delete`.
    pub(crate) fn event(&self, kind: Kind, event: &'static str) {
        self.events.lock().entry((kind, event)).or_default().inc();
    }

    /// Nothing that nodes read had changed.
    pub(crate) fn unchanged(&self) {
        self.unchanged.inc();
    }

    pub(crate) fn watch_error(&self) {
        self.watch_errors.inc();
    }

    /// A kind has been listed again, and so many of its objects were gone.
    pub(crate) fn relisted(&self, kind: Kind, gone: usize) {
        self.relists.inc();
        if gone > 0 {
            self.events.lock().entry((kind, "delete")).or_default().add(gone as u64);
        }
    }

    fn expose(&self, out: &mut Exposition) {
        let histograms = [
            (
                "pilot_proxy_convergence_time",
                "Seconds from a change to the word of a node that needs it.",
                &self.convergence,
            ),
            (
                "pilot_proxy_queue_time",
                "Seconds from a change to the Update that brings it.",
                &self.queue_time,
            ),
            ("pilot_xds_config_size_bytes", "Bytes of Updates.", &self.update_bytes),
        ];
        for (name, help, histogram) in histograms {
            out.family(name, help, Family::Histogram);
            histogram.expose(out, name, &[]);
        }
        let name = "pilot_xds_push_time";
        out.family(name, "Seconds until an Update was handed over.", Family::Histogram);
        for (kind, histogram) in TYPES.iter().zip(&self.push_time) {
            histogram.expose(out, name, &[("type", kind)]);
        }
        let events = self.events.lock();
        for (name, of_config) in [("pilot_k8s_cfg_events", true), ("pilot_k8s_reg_events", false)] {
            out.family(name, "Events of the API server.", Family::Counter);
            for ((kind, event), counter) in
                events.iter().filter(|((k, _), _)| k.is_istio() == of_config)
            {
                let labels = [("type", kind.as_str()), ("event", event)];
                out.sample(name, &labels, counter.get());
            }
        }
    }
}

/// The types of pushes that these kinds make, each once.
fn types(kinds: &BTreeMap<Kind, usize>) -> impl Iterator<Item = usize> {
    let mut there = [false; 4];
    for kind in kinds.keys() {
        there[push_type(*kind)] = true;
    }
    (0..4).filter(move |kind| there[*kind])
}

fn expose_world(world: &World, out: &mut Exposition) {
    let census = world.census();
    let of = |kind| census.objects.get(&kind).copied().unwrap_or(0);
    let gauges = [
        ("pilot_services", "Services.", census.services),
        ("pilot_virt_services", "VirtualServices.", of(Kind::VirtualService)),
        ("fairlead_controller_object_bytes", "Bytes of all objects.", census.bytes),
    ];
    for (name, help, value) in gauges {
        out.family(name, help, Family::Gauge);
        out.sample(name, &[], value);
    }
    let name = "fairlead_controller_objects";
    out.family(name, "Objects, by kind.", Family::Gauge);
    for (kind, count) in &census.objects {
        out.sample(name, &[("kind", kind.as_str())], count);
    }
}

/// Memory and CPU, under the names of Prometheus' own clients.
fn expose_process(out: &mut Exposition) {
    /// Bytes of a page.
    const PAGE: u64 = 4096;
    /// Clock ticks of a second, fixed for all of userspace (`USER_HZ`).
    const TICKS: f64 = 100.0;
    let words = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let statm = words("/proc/self/statm");
    let mut sizes = statm.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let gauges = ["process_virtual_memory_bytes", "process_resident_memory_bytes"];
    for (name, pages) in gauges.into_iter().zip(&mut sizes) {
        out.family(name, "Memory of the process.", Family::Gauge);
        out.sample(name, &[], pages * PAGE);
    }
    let stat = words("/proc/self/stat");
    // The name of the process, in brackets, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    out.family("process_cpu_seconds_total", "CPU time of the process.", Family::Counter);
    out.sample("process_cpu_seconds_total", &[], ticks.sum::<f64>() / TICKS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_find_their_names() {
        let world = World::new("fairlead-system", "cluster.local");
        let metrics = Metrics::new(&world);
        metrics.connected(1);
        metrics.event(Kind::VirtualService, "add");
        metrics.event(Kind::Pod, "update");
        let kinds = [(Kind::Pod, 3), (Kind::EndpointSlice, 1), (Kind::VirtualService, 1)].into();
        metrics.pushed(&kinds, 100, Some(Instant::now()));
        metrics.acknowledged(Some(Duration::from_millis(30)), 1);
        let text = metrics.scrape();
        let version = env!("CARGO_PKG_VERSION");
        for line in [
            &format!("pilot_xds{{version=\"{version}\"}} 1"),
            "pilot_xds_pushes{type=\"eds\"} 1",
            "pilot_xds_pushes{type=\"rds\"} 1",
            "pilot_xds_pushes{type=\"cds\"} 0",
            "pilot_total_xds_rejects 1",
            "pilot_k8s_cfg_events{type=\"VirtualService\",event=\"add\"} 1",
            "pilot_k8s_reg_events{type=\"Pod\",event=\"update\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.025\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.05\"} 1",
            "pilot_proxy_convergence_time_count 1",
            "pilot_services 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
