use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_types::{Refusal, ResponseFlags, SpiffeId};

use super::*;
use crate::{ConnectionSecurity, HttpEvent, Protocol, Reporter, ServiceLabels, TcpConnection};

fn workload(name: &str, app: &str, version: &str) -> WorkloadLabels {
    let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{app}").parse().unwrap();
    WorkloadLabels::new(
        &name.into(),
        &"default".into(),
        Some(&id),
        &app.into(),
        &version.into(),
        &app.into(),
        &version.into(),
        &"Kubernetes".into(),
    )
}

fn bookinfo(reporter: Reporter, protocol: Protocol) -> TrafficLabels {
    TrafficLabels {
        reporter,
        source: workload("productpage-v1", "productpage", "v1"),
        destination: workload("details-v1", "details", "v1"),
        service: ServiceLabels::new(
            &"details.default.svc.cluster.local".into(),
            &"details".into(),
            &"default".into(),
        ),
        protocol,
        security: ConnectionSecurity::MutualTls,
    }
}

fn text(telemetry: &Telemetry) -> String {
    telemetry.scrape().collect()
}

/// Label name to value of the only sample of `name`.
fn labels(text: &str, name: &str) -> BTreeMap<String, String> {
    let prefix = format!("{name}{{");
    let mut found = text.lines().filter_map(|l| l.strip_prefix(&prefix));
    let line = found.next().unwrap_or_else(|| panic!("{name} is missing in\n{text}"));
    assert!(found.next().is_none(), "{name} more than once");
    let (set, _) = line.rsplit_once("} ").unwrap();
    set.trim_end_matches('"')
        .split("\",")
        .map(|pair| pair.split_once("=\"").unwrap())
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// What Istio 1.x exports on Bookinfo for this edge, apart from the labels that Prometheus adds.
const GOLDEN_DESTINATION: &[(&str, &str)] = &[
    ("connection_security_policy", "mutual_tls"),
    ("destination_app", "details"),
    ("destination_canonical_revision", "v1"),
    ("destination_canonical_service", "details"),
    ("destination_cluster", "Kubernetes"),
    ("destination_principal", "spiffe://cluster.local/ns/default/sa/details"),
    ("destination_service", "details.default.svc.cluster.local"),
    ("destination_service_name", "details"),
    ("destination_service_namespace", "default"),
    ("destination_version", "v1"),
    ("destination_workload", "details-v1"),
    ("destination_workload_namespace", "default"),
    ("reporter", "destination"),
    ("request_protocol", "http"),
    ("response_code", "200"),
    ("response_flags", "-"),
    ("source_app", "productpage"),
    ("source_canonical_revision", "v1"),
    ("source_canonical_service", "productpage"),
    ("source_cluster", "Kubernetes"),
    ("source_principal", "spiffe://cluster.local/ns/default/sa/productpage"),
    ("source_version", "v1"),
    ("source_workload", "productpage-v1"),
    ("source_workload_namespace", "default"),
];

fn golden(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
    GOLDEN_DESTINATION
        .iter()
        .chain(changes)
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn label_sets_are_istios() {
    let ok = HttpEvent { code: 200, ..HttpEvent::default() };

    let telemetry = Telemetry::new();
    telemetry.http_series(&bookinfo(Reporter::Destination, Protocol::Http)).record(&ok);
    assert_eq!(labels(&text(&telemetry), "istio_requests_total"), golden(&[]));

    let telemetry = Telemetry::new();
    telemetry.http_series(&bookinfo(Reporter::Source, Protocol::Http)).record(&ok);
    assert_eq!(
        labels(&text(&telemetry), "istio_requests_total"),
        golden(&[("reporter", "source"), ("connection_security_policy", "unknown")])
    );

    let telemetry = Telemetry::new();
    let grpc =
        HttpEvent { grpc_status: Some(14), flags: ResponseFlags::UpstreamConnectionFailure, ..ok };
    telemetry.http_series(&bookinfo(Reporter::Destination, Protocol::Grpc)).record(&grpc);
    let grpc_labels =
        [("request_protocol", "grpc"), ("grpc_response_status", "14"), ("response_flags", "UF")];
    assert_eq!(labels(&text(&telemetry), "istio_requests_total"), golden(&grpc_labels));
    let count = labels(&text(&telemetry), "istio_request_duration_milliseconds_count");
    assert_eq!(count, golden(&grpc_labels), "histograms carry the same labels");
}

#[test]
fn tcp_label_sets_are_istios() {
    let telemetry = Telemetry::new();
    let series = telemetry.tcp_series(&bookinfo(Reporter::Destination, Protocol::Tcp));
    drop(TcpConnection::open(series, None));
    let mut expected = golden(&[("request_protocol", "tcp")]);
    expected.remove("response_code");
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        assert_eq!(labels(&text(&telemetry), name), expected, "{name}");
    }
}

#[test]
fn what_is_unknown_says_so() {
    let telemetry = Telemetry::new();
    let labels_of = TrafficLabels {
        reporter: Reporter::Destination,
        source: WorkloadLabels::unknown(),
        destination: workload("", "details", "v1").with_principal(None),
        service: ServiceLabels::pass_through("unknown"),
        protocol: Protocol::Tcp,
        security: ConnectionSecurity::None,
    };
    telemetry.tcp_series(&labels_of).refused(Refusal::NetworkPolicy);
    let text = text(&telemetry);
    let found = labels(&text, "istio_tcp_connections_failed_total");
    for (name, value) in [
        ("source_workload", "unknown"),
        ("source_principal", "unknown"),
        ("source_canonical_revision", "latest"),
        ("source_cluster", "unknown"),
        ("destination_workload", "unknown"),
        ("destination_principal", "unknown"),
        ("destination_service_name", "PassthroughCluster"),
        ("response_flags", "NETWORK_POLICY"),
        ("connection_security_policy", "none"),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
    assert!(!text.contains("istio_tcp_connections_opened_total{"), "a refusal opens nothing");
}

fn value(text: &str, start: &str) -> f64 {
    text.lines()
        .filter(|l| l.starts_with(start))
        .map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

#[test]
fn sums_agree_with_events() {
    let telemetry = Telemetry::new();
    let source = telemetry.http_series(&bookinfo(Reporter::Source, Protocol::Http));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..1000_u16 {
                    source.record(&HttpEvent {
                        code: 200 + i % 10,
                        duration: Duration::from_micros(2_500),
                        request_bytes: 10,
                        response_bytes: 100,
                        ..HttpEvent::default()
                    });
                }
            });
        }
    });
    let text = text(&telemetry);
    assert!((value(&text, "istio_requests_total{") - 4000.0).abs() < 1e-6);
    assert_eq!(text.matches("istio_requests_total{").count(), 10, "one sample for each code");
    for (start, expected) in [
        ("istio_request_duration_milliseconds_sum{", 10_000.0),
        ("istio_request_duration_seconds_sum{", 10.0),
        ("istio_request_duration_milliseconds_count{", 4000.0),
        ("istio_request_bytes_sum{", 40_000.0),
        ("istio_response_bytes_sum{", 400_000.0),
    ] {
        assert!((value(&text, start) - expected).abs() < 1e-6, "{start}");
    }
}

#[test]
fn a_connection_counts_at_both_reporters_and_closes_however_it_is_left() {
    let telemetry = Telemetry::new();
    let source = telemetry.tcp_series(&bookinfo(Reporter::Source, Protocol::Tcp));
    let destination = telemetry.tcp_series(&bookinfo(Reporter::Destination, Protocol::Tcp));
    let connection = TcpConnection::open(source, Some(destination));
    connection.received(7);
    connection.sent(70);
    let open = text(&telemetry);
    assert!((value(&open, "istio_tcp_connections_opened_total{") - 2.0).abs() < 1e-6);
    assert!(value(&open, "istio_tcp_connections_closed_total{").abs() < 1e-6);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = connection;
        panic!("the code that carried it fails");
    }));
    assert!(panicked.is_err());
    let closed = text(&telemetry);
    assert!((value(&closed, "istio_tcp_connections_closed_total{") - 2.0).abs() < 1e-6);
    assert!((value(&closed, "istio_tcp_received_bytes_total{") - 14.0).abs() < 1e-6);
    assert!((value(&closed, "istio_tcp_sent_bytes_total{") - 140.0).abs() < 1e-6);
}

#[test]
fn series_are_bounded_and_nothing_is_lost_from_the_sum() {
    let telemetry = Telemetry::with_bound(16);
    for i in 0..200 {
        let mut labels = bookinfo(Reporter::Source, Protocol::Http);
        labels.destination = workload(&format!("w{i}"), "details", "v1");
        telemetry.http_series(&labels).record(&HttpEvent::default());
    }
    let text = text(&telemetry);
    assert!(text.matches("istio_requests_total{").count() <= 17);
    assert!((value(&text, "istio_requests_total{") - 200.0).abs() < 1e-6);
    let overflowed = value(&text, "fairlead_metric_series_overflow_total{kind=\"http\"}");
    let held = value(&text, "fairlead_metric_series{kind=\"http\"}");
    assert!((overflowed + held - 200.0).abs() < 1e-6);
    assert!(text.contains("destination_service=\"overflow\""));
}

#[test]
fn outcomes_are_bounded() {
    let telemetry = Telemetry::new();
    let series = telemetry.http_series(&bookinfo(Reporter::Source, Protocol::Http));
    for code in 0..500 {
        series.record(&HttpEvent { code, ..HttpEvent::default() });
    }
    let text = text(&telemetry);
    assert_eq!(text.matches("istio_requests_total{").count(), 64);
    assert!((value(&text, "istio_requests_total{") - 500.0).abs() < 1e-6);
    assert!(text.contains("response_code=\"other\""));
}

#[test]
fn idle_series_go_and_held_ones_stay() {
    let telemetry = Telemetry::new();
    let held = telemetry.http_series(&bookinfo(Reporter::Source, Protocol::Http));
    held.record(&HttpEvent::default());
    telemetry
        .http_series(&bookinfo(Reporter::Destination, Protocol::Http))
        .record(&HttpEvent::default());
    let now = Instant::now();
    telemetry.sweep_at(now);
    telemetry.sweep_at(now + SERIES_IDLE / 2);
    assert_eq!(telemetry.http.len(), 2);
    telemetry.sweep_at(now + SERIES_IDLE);
    assert_eq!(telemetry.http.len(), 1, "idle and held by nobody");
    drop(held);
    telemetry.sweep_at(now + SERIES_IDLE * 2);
    assert_eq!(telemetry.http.len(), 0);
}

#[test]
fn labels_of_a_workload_are_made_once_for_each_object() {
    let telemetry = Telemetry::new();
    let id = WorkloadId::new("default", "details-v1-x");
    let first = Arc::new("v1".to_owned());
    let made = std::cell::Cell::new(0);
    let get = |of: &Arc<String>| {
        telemetry.workload_labels(&id, of, |version| {
            made.set(made.get() + 1);
            workload("details", "details", version)
        })
    };
    assert_eq!(get(&first), get(&first));
    assert_eq!(made.get(), 1);
    let second = Arc::new("v2".to_owned());
    assert_ne!(get(&first), get(&second), "a new object of the same name is looked at anew");
    assert_eq!(made.get(), 2);
    drop(second);
    telemetry.sweep();
    assert_eq!(telemetry.workloads.read().len(), 0, "an object that only the cache held goes");
}

#[test]
fn a_large_scrape_comes_in_pieces() {
    let telemetry = Telemetry::new();
    for i in 0..300 {
        let mut labels = bookinfo(Reporter::Source, Protocol::Http);
        labels.destination = workload(&format!("w{i}"), "details", "v1");
        telemetry.http_series(&labels).record(&HttpEvent::default());
    }
    let pieces: Vec<String> = telemetry.scrape().collect();
    assert!(pieces.len() > 10);
    assert!(pieces.iter().all(|p| p.len() < PIECE * 2));
    let whole = pieces.concat();
    for family in ["istio_requests_total", "istio_request_bytes", "fairlead_metric_series"] {
        assert_eq!(whole.matches(&format!("# TYPE {family} ")).count(), 1, "{family}");
    }
    assert_eq!(whole.matches("istio_response_bytes_count{").count(), 300);
}
