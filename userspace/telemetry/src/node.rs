//! [`Telemetry`]: everything that one node daemon measures.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_types::WorkloadId;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use crate::AccessLog;
use crate::istio::{FAMILIES, Family, HttpSeries, Table, TcpSeries, TrafficLabels, WorkloadLabels};
use crate::metrics::{Exposition, Kind, Registry};

/// HTTP label sets, and TCP label sets, that are kept at most; beyond it events are counted under
/// `destination_service="overflow"`.
pub const MAX_SERIES: usize = 8192;

/// A series that nobody holds is dropped after this long without an event.
pub const SERIES_IDLE: Duration = Duration::from_secs(15 * 60);

/// Workloads whose labels are cached at most; the cache is emptied when it is full.
const MAX_CACHED_WORKLOADS: usize = 65_536;

/// A piece of a scrape is cut once it is this long.
const PIECE: usize = 64 * 1024;

struct CachedWorkload {
    /// Keeps the configuration's object alive, so that its address cannot come to mean another.
    of: Arc<dyn Any + Send + Sync>,
    labels: WorkloadLabels,
}

/// Metrics and access log of one node. Shared as an `Arc`.
pub struct Telemetry {
    registry: Registry,
    http: Table<HttpSeries>,
    tcp: Table<TcpSeries>,
    workloads: RwLock<HashMap<WorkloadId, CachedWorkload, RandomState>>,
    access_log: AccessLog,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("http_series", &self.http.len())
            .field("tcp_series", &self.tcp.len())
            .finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Telemetry without an access log; [`AccessLog::configure`] sets one up.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_bound(MAX_SERIES)
    }

    fn with_bound(bound: usize) -> Arc<Self> {
        let registry = Registry::default();
        let overflowed = |kind| {
            registry.counter(
                "fairlead_metric_series_overflow_total",
                "Lookups of a traffic series that found the table at its bound.",
                &[("kind", kind)],
            )
        };
        let http = Table::new(bound, overflowed("http"));
        let tcp = Table::new(bound, overflowed("tcp"));
        let access_log = AccessLog::new(&registry);
        Arc::new(Self { registry, http, tcp, workloads: RwLock::default(), access_log })
    }

    /// Counters and gauges of the daemon itself (`fairlead_*`).
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The access log.
    #[must_use]
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The series of HTTP requests with these labels. A hash and a shared lock; keep the handle
    /// with the connection where the labels do not change.
    #[must_use]
    pub fn http_series(&self, labels: &TrafficLabels) -> Arc<HttpSeries> {
        self.http.get(labels)
    }

    /// The series of TCP connections with these labels.
    #[must_use]
    pub fn tcp_series(&self, labels: &TrafficLabels) -> Arc<TcpSeries> {
        self.tcp.get(labels)
    }

    /// The labels of a workload, made once for each object of the configuration: `of` is the
    /// snapshot's shared workload, and as long as the same one is passed, `make` is not called.
    pub fn workload_labels<T: Any + Send + Sync>(
        &self,
        id: &WorkloadId,
        of: &Arc<T>,
        make: impl FnOnce(&T) -> WorkloadLabels,
    ) -> WorkloadLabels {
        if let Some(known) = self.workloads.read().get(id)
            && std::ptr::addr_eq(Arc::as_ptr(&known.of), Arc::as_ptr(of))
        {
            return known.labels.clone();
        }
        let labels = make(of);
        let mut workloads = self.workloads.write();
        if workloads.len() >= MAX_CACHED_WORKLOADS {
            workloads.clear();
        }
        let of: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(of);
        workloads.insert(id.clone(), CachedWorkload { of, labels: labels.clone() });
        labels
    }

    /// Housekeeping, to be called every minute or so: drops idle series, and labels of workloads
    /// that no snapshot holds any more.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    fn sweep_at(&self, now: Instant) {
        self.http.sweep(now, SERIES_IDLE);
        self.tcp.sweep(now, SERIES_IDLE);
        self.workloads.write().retain(|_, cached| Arc::strong_count(&cached.of) > 1);
    }

    /// All metrics in the Prometheus text format (content type [`Telemetry::CONTENT_TYPE`]), in
    /// pieces, so that a scrape of many series needs little memory.
    #[must_use]
    pub fn scrape(&self) -> Scrape {
        let mut out = Exposition::default();
        self.registry.expose(&mut out);
        out.family("fairlead_metric_series", "Traffic series held.", Kind::Gauge);
        out.sample("fairlead_metric_series", &[("kind", "http")], self.http.len());
        out.sample("fairlead_metric_series", &[("kind", "tcp")], self.tcp.len());
        Scrape {
            out,
            http: self.http.all(),
            tcp: self.tcp.all(),
            families: FAMILIES.iter().collect(),
            position: 0,
        }
    }

    /// The content type of a scrape.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";
}

/// The text of a scrape, piece by piece.
pub struct Scrape {
    out: Exposition,
    http: Vec<Arc<HttpSeries>>,
    tcp: Vec<Arc<TcpSeries>>,
    families: VecDeque<&'static Family>,
    /// Next series of the first family.
    position: usize,
}

impl Iterator for Scrape {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while self.out.len() < PIECE {
            let Some(family) = self.families.front() else { break };
            let series = if family.is_http() { self.http.len() } else { self.tcp.len() };
            if self.position == 0 && series > 0 {
                family.head(&mut self.out);
            }
            if self.position >= series {
                self.families.pop_front();
                self.position = 0;
                continue;
            }
            if family.is_http() {
                family.http(&self.http[self.position], &mut self.out);
            } else {
                family.tcp(&self.tcp[self.position], &mut self.out);
            }
            self.position += 1;
        }
        (!self.out.is_empty()).then(|| self.out.take())
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
