//! The daemon's own metrics (`fairlead_*`, `process_*`), read when somebody scrapes.

use std::sync::Arc;
use std::time::SystemTime;

use fairlead_capture::Capture;
use fairlead_identity::IdentityStore;
use fairlead_proxy::transport::{Transport, Wire};
use fairlead_proxy::{DataPlane, Direction};
use fairlead_telemetry::{Exposition, Kind, Registry};
use parking_lot::Mutex;

use crate::configuration::Report;
use crate::configuration::controller::Status;
use crate::enrolment::{PodState, Table};
use crate::process::{unix, usage};

/// What is read at a scrape.
#[derive(Clone)]
pub struct Sources {
    /// The kernel.
    pub capture: Arc<Capture>,
    /// Certificates.
    pub identity: Arc<IdentityStore>,
    /// Connections.
    pub data: Arc<DataPlane>,
    /// Sessions.
    pub transport: Arc<Transport>,
    /// Configuration.
    pub report: Arc<Mutex<Report>>,
    /// How the node stands with its controller, if it has one.
    pub controller: Option<Status>,
    /// Pods.
    pub pods: Table,
}

/// Has `registry` export all of it.
pub fn register(registry: &Registry, sources: Sources) {
    let started = SystemTime::now();
    registry
        .gauge(
            "fairlead_build_info",
            "Always 1; the version is a label.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )
        .set(1);
    registry.collector(move |out| {
        process(out, started);
        configuration(out, &sources.report.lock());
        if let Some(status) = &sources.controller {
            controller(out, status);
        }
        capture(out, &sources.capture);
        pods(out, &sources.pods);
        certificates(out, &sources.identity);
        connections(out, &sources);
    });
}

fn process(out: &mut Exposition, started: SystemTime) {
    let usage = usage();
    let mut one = |name: &str, help: &str, kind, value: f64| {
        out.family(name, help, kind);
        out.sample(name, &[], value);
    };
    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    {
        one(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            Kind::Gauge,
            usage.resident as f64,
        );
        one("process_open_fds", "Open descriptors.", Kind::Gauge, usage.descriptors as f64);
        one("process_threads", "Threads.", Kind::Gauge, usage.threads as f64);
        one(
            "process_start_time_seconds",
            "When the daemon started, in seconds since 1970.",
            Kind::Gauge,
            unix(started) as f64,
        );
    }
    one(
        "process_cpu_seconds_total",
        "CPU time of all threads in seconds.",
        Kind::Counter,
        usage.cpu.as_secs_f64(),
    );
}

fn configuration(out: &mut Exposition, report: &Report) {
    out.family("fairlead_config_snapshot_version", "Version of the snapshot.", Kind::Gauge);
    out.sample("fairlead_config_snapshot_version", &[], report.version);
    out.family("fairlead_config_objects", "Objects in force.", Kind::Gauge);
    out.sample("fairlead_config_objects", &[], report.objects);
    out.family("fairlead_config_changes_total", "Changes applied.", Kind::Counter);
    out.sample("fairlead_config_changes_total", &[], report.loads);
    out.family(
        "fairlead_config_last_change_timestamp_seconds",
        "When the last change was applied, in seconds since 1970.",
        Kind::Gauge,
    );
    out.sample("fairlead_config_last_change_timestamp_seconds", &[], report.at.map_or(0, unix));
    out.family(
        "fairlead_config_compile_seconds",
        "How long compiling the last change took.",
        Kind::Gauge,
    );
    out.sample("fairlead_config_compile_seconds", &[], report.took.as_secs_f64());
    out.family("fairlead_config_problems", "Problems of the configuration now.", Kind::Gauge);
    for (severity, count) in [("error", report.counts[0]), ("warning", report.counts[1])] {
        out.sample("fairlead_config_problems", &[("severity", severity)], count);
    }
}

fn controller(out: &mut Exposition, status: &Status) {
    let facts = status.facts();
    let mut gauge = |name: &str, help: &str, value: f64| {
        out.family(name, help, Kind::Gauge);
        out.sample(name, &[], value);
    };
    gauge(
        "fairlead_configuration_age_seconds",
        "How long ago the configuration was last known to be current; NaN: there is none yet.",
        facts.age().map_or(f64::NAN, |age| age.as_secs_f64()),
    );
    gauge(
        "fairlead_controller_connected",
        "1 while a controller keeps the configuration current.",
        f64::from(u8::from(facts.current)),
    );
    gauge(
        "fairlead_controller_latency_seconds",
        "From the oldest change of the last Update to its being in force here.",
        facts.latency.as_secs_f64(),
    );
    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    gauge("fairlead_state_bytes", "Length of the state file.", facts.state_bytes as f64);
    let mut counter = |name: &str, help: &str, samples: &[(&[(&str, &str)], u64)]| {
        out.family(name, help, Kind::Counter);
        for (labels, value) in samples {
            out.sample(name, labels, *value);
        }
    };
    counter(
        "fairlead_controller_streams_total",
        "Streams from the controller that were opened.",
        &[(&[], facts.streams)],
    );
    counter("fairlead_controller_updates_total", "Updates applied.", &[(&[], facts.updates)]);
    counter(
        "fairlead_controller_objects_total",
        "Objects that came, were removed, or were refused.",
        &[
            (&[("what", "upserted")], facts.objects[0]),
            (&[("what", "removed")], facts.objects[1]),
            (&[("what", "rejected")], facts.rejected),
        ],
    );
    counter(
        "fairlead_lookups_total",
        "Questions to the controller about addresses that nobody here knows.",
        &[
            (&[("result", "known")], facts.lookups[0]),
            (&[("result", "unknown")], facts.lookups[1]),
            (&[("result", "unanswered")], facts.lookups[2]),
        ],
    );
}

fn capture(out: &mut Exposition, capture: &Capture) {
    if let Ok(counters) = capture.counters() {
        out.family(
            "fairlead_capture_events_total",
            "What the kernel programs decided, since their maps were made.",
            Kind::Counter,
        );
        for (event, count) in counters {
            out.sample("fairlead_capture_events_total", &[("event", event)], count);
        }
    }
    if let Ok((flows, deliveries)) = capture.under_way() {
        out.family(
            "fairlead_capture_entries",
            "Entries of the kernel's tables of connections that are being handed over.",
            Kind::Gauge,
        );
        out.sample("fairlead_capture_entries", &[("table", "flows")], flows);
        out.sample("fairlead_capture_entries", &[("table", "deliveries")], deliveries);
    }
}

fn pods(out: &mut Exposition, pods: &Table) {
    let pods = pods.lock();
    out.family("fairlead_pods", "Pods of this node, by state.", Kind::Gauge);
    for state in [PodState::Captured, PodState::Refused, PodState::Waiting, PodState::Outside] {
        let count = pods.iter().filter(|p| p.state == state).count();
        out.sample("fairlead_pods", &[("state", state.as_str())], count);
    }
}

fn certificates(out: &mut Exposition, identity: &IdentityStore) {
    let held = identity.held();
    out.family(
        "fairlead_certificate_expiry_timestamp_seconds",
        "When a certificate ends, in seconds since 1970; 0: there is none.",
        Kind::Gauge,
    );
    for (id, info, _) in &held {
        let end = info.as_ref().map_or(0, |i| unix(i.not_after));
        let id = id.to_string();
        out.sample("fairlead_certificate_expiry_timestamp_seconds", &[("identity", &id)], end);
    }
    out.family(
        "fairlead_certificate_renewal_failing",
        "1 where the last attempt to obtain a certificate failed.",
        Kind::Gauge,
    );
    for (id, _, failure) in &held {
        let failing = u8::from(failure.is_some());
        let id = id.to_string();
        out.sample("fairlead_certificate_renewal_failing", &[("identity", &id)], failing);
    }
}

fn connections(out: &mut Exposition, sources: &Sources) {
    let connections = sources.data.connections();
    out.family("fairlead_connections", "Connections at this moment.", Kind::Gauge);
    for (word, direction) in [("outbound", Direction::Outbound), ("inbound", Direction::Inbound)] {
        let count = connections.iter().filter(|c| c.direction == direction).count();
        out.sample("fairlead_connections", &[("direction", word)], count);
    }
    let sessions = sources.transport.sessions();
    let mut family =
        |name: &str, help: &str, of: fn(&fairlead_proxy::transport::SessionInfo) -> usize| {
            out.family(name, help, Kind::Gauge);
            for (word, wire) in [("native", Wire::Native), ("hbone", Wire::Hbone)] {
                let count: usize = sessions.iter().filter(|s| s.wire == wire).map(of).sum();
                out.sample(name, &[("wire", word)], count);
            }
        };
    family("fairlead_sessions", "Outbound TLS sessions to other nodes.", |s| s.sessions);
    family("fairlead_streams", "Streams on those sessions.", |s| s.streams);
}
