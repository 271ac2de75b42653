//! Istio's metrics with their labels (rows 11.1-11.3, 11.8), the access log in both formats
//! (11.13, 11.14), trace headers passed through, connections over the bound (11.7).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::metrics::Metrics;
use fairlead_tests::{Mesh, PodSpec, eventually};

use crate::common::{SERVER, counted_twice, echo_args, pair, service};

/// The labels of Istio 1.2x on request metrics, sorted.
const HTTP_LABELS: &[&str] = &[
    "connection_security_policy",
    "destination_app",
    "destination_canonical_revision",
    "destination_canonical_service",
    "destination_cluster",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_workload",
    "destination_workload_namespace",
    "reporter",
    "request_protocol",
    "response_code",
    "response_flags",
    "source_app",
    "source_canonical_revision",
    "source_canonical_service",
    "source_cluster",
    "source_principal",
    "source_version",
    "source_workload",
    "source_workload_namespace",
];

#[test]
fn request_metrics_have_istios_labels_and_true_numbers() -> Result<()> {
    let p = pair()?;
    let before = p.mesh.metrics()?;
    let load =
        p.client.load("http://server/", &["-n", "500", "-c", "4", "-H", "x-echo-delay-ms: 7"])?;
    ensure!(load.status(200) == 500, "{}", load.0);
    counted_twice(&p.mesh, &before, &[("response_code", "200")], 500.0)?;
    let all = p.mesh.metrics()?;
    for (reporter, security) in [("source", "unknown"), ("destination", "mutual_tls")] {
        let labels = [("reporter", reporter)];
        let sample = all.select("istio_requests_total", &labels).next().context("no sample")?;
        let names: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
        let wanted: BTreeSet<&str> = HTTP_LABELS.iter().copied().collect();
        ensure!(
            names == wanted,
            "labels {:?}",
            names.symmetric_difference(&wanted).collect::<Vec<_>>()
        );
        for (label, value) in [
            ("source_workload", "client"),
            ("source_workload_namespace", "default"),
            ("source_app", "client"),
            ("source_version", "v1"),
            ("source_canonical_service", "client"),
            ("source_canonical_revision", "v1"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
            ("destination_workload", "server"),
            ("destination_app", "server"),
            ("destination_principal", "spiffe://cluster.local/ns/default/sa/server"),
            ("destination_service", SERVER),
            ("destination_service_name", "server"),
            ("destination_service_namespace", "default"),
            ("destination_canonical_service", "server"),
            ("request_protocol", "http"),
            ("response_code", "200"),
            ("response_flags", "-"),
            ("connection_security_policy", security),
        ] {
            ensure!(
                sample.labels[label] == value,
                "{reporter} {label} is {:?}",
                sample.labels[label]
            );
        }
    }
    // The histogram holds what the client measured.
    for name in ["istio_request_duration_milliseconds", "istio_request_duration_seconds"] {
        let unit =
            if name.ends_with("seconds") && !name.ends_with("milliseconds") { 1e-3 } else { 1.0 };
        let count = rise(&before, &all, &format!("{name}_count"), "source");
        let sum = rise(&before, &all, &format!("{name}_sum"), "source") / unit;
        ensure!(count == 500.0, "{name}: {count}");
        let mean = sum / count;
        ensure!(
            (7.0..load.figure("max_ms").max(20.0)).contains(&mean),
            "{name}: the mean is {mean} ms"
        );
        let under = all
            .select(&format!("{name}_bucket"), &[("reporter", "source")])
            .filter(|s| s.labels["le"].parse::<f64>().is_ok_and(|le| le / unit < 7.0))
            .map(|s| s.value)
            .fold(0.0, f64::max);
        ensure!(under == 0.0, "{name}: {under} requests under 7 ms");
    }
    Ok(())
}

fn rise(before: &Metrics, after: &Metrics, name: &str, reporter: &str) -> f64 {
    let labels = [("reporter", reporter)];
    after.sum(name, &labels) - before.sum(name, &labels)
}

#[test]
fn sizes_are_those_of_the_bodies() -> Result<()> {
    let p = pair()?;
    let before = p.mesh.metrics()?;
    for _ in 0..4 {
        let reply = p.client.get(
            "http://server/",
            &["-X", "POST", "--size", "10000", "-H", "x-echo-size: 250000"],
        )?;
        ensure!(reply.status() == 200 && reply.0["length"] == 250_000, "{}", reply.0["status"]);
    }
    for reporter in ["source", "destination"] {
        for (name, each) in [("istio_request_bytes", 10_000.0), ("istio_response_bytes", 250_000.0)]
        {
            let labels = [("reporter", reporter)];
            p.mesh.counted(&before, &format!("{name}_count"), &labels, 4.0)?;
            let sum = p.mesh.counted(&before, &format!("{name}_sum"), &labels, each * 4.0)?;
            // Istio counts headers too; bodies are what is known for certain.
            ensure!(sum < each * 4.0 + 4.0 * 2_000.0, "{reporter} {name}: {sum}");
        }
    }
    Ok(())
}

#[test]
fn the_text_log_has_istios_fields_in_istios_order() -> Result<()> {
    let p = pair()?;
    let log = p.mesh.dir().join("text.log");
    p.mesh.mesh_config(&format!("accessLogFile: {}\naccessLogEncoding: TEXT", log.display()));
    p.mesh.sync()?;
    let reply = p.client.get(
        "http://server/text?q=1",
        &[
            "-H",
            "user-agent: me/1",
            "-H",
            "x-request-id: 4711",
            "-H",
            "x-forwarded-for: 1.2.3.4",
            "-d",
            "12345",
            "-X",
            "POST",
        ],
    )?;
    ensure!(reply.status() == 200, "{}", reply.0);
    let line = fairlead_tests::eventually("a line", std::time::Duration::from_secs(3), || {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.lines().find(|l| l.contains("outbound|80||")).map(str::to_owned))
    })?;
    let fields = split(&line)?;
    ensure!(fields.len() == 22, "{} fields in {line}", fields.len());
    ensure!(fields[0].len() == 24 && fields[0].ends_with('Z'), "start time {:?}", fields[0]);
    for (i, wanted) in [
        (1, "POST /text?q=1 HTTP/1.1"),
        (2, "200"),
        (3, "-"),
        (4, "via_upstream"),
        (5, "-"),
        (6, "-"),
        (7, "5"),
        (13, "me/1"),
        (14, "4711"),
        (15, "server"),
    ] {
        // Index 12 on are quoted header values; the list above counts from the method line.
        let at = if i >= 13 { i - 1 } else { i };
        ensure!(fields[at] == wanted, "field {at} is {:?}, not {wanted:?}: {line}", fields[at]);
    }
    let cluster = fields.iter().any(|f| f == &format!("outbound|80||{SERVER}"));
    ensure!(cluster, "{line}");
    ensure!(fields.iter().any(|f| f.starts_with(&p.client.ip().to_string())), "{line}");
    Ok(())
}

/// Fields of a line: bracketed, quoted or bare.
fn split(line: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (close, skip) = match rest.as_bytes()[0] {
            b'[' if fields.is_empty() => (']', 1),
            b'"' => ('"', 1),
            _ => (' ', 0),
        };
        let body = &rest[skip..];
        let end = body.find(close).unwrap_or(body.len());
        fields.push(body[..end].to_owned());
        rest = body.get(end + skip..).unwrap_or_default().trim_start();
    }
    Ok(fields)
}

#[test]
fn the_json_log_has_istios_keys() -> Result<()> {
    let p = pair()?;
    ensure!(p.client.get("http://server/json", &["-H", "user-agent: me"])?.status() == 200);
    for (node, cluster) in [(0, "outbound|80||"), (1, "inbound|8080||")] {
        let entry = p.mesh.logged(node, "/json", |e| e.text("path") == "/json")?;
        for key in [
            "start_time",
            "route_name",
            "method",
            "path",
            "protocol",
            "response_code",
            "response_flags",
            "response_code_details",
            "connection_termination_details",
            "bytes_received",
            "bytes_sent",
            "duration",
            "upstream_service_time",
            "x_forwarded_for",
            "user_agent",
            "request_id",
            "authority",
            "upstream_host",
            "upstream_cluster",
            "upstream_local_address",
            "downstream_local_address",
            "downstream_remote_address",
            "requested_server_name",
            "upstream_transport_failure_reason",
        ] {
            ensure!(entry.0.get(key).is_some(), "node {node}: no {key} in {}", entry.0);
        }
        ensure!(entry.text("upstream_cluster").starts_with(cluster), "{}", entry.0);
        ensure!(
            entry.text("user_agent") == "me" && entry.text("authority") == "server",
            "{}",
            entry.0
        );
        ensure!(entry.text("method") == "GET" && entry.0["response_code"] == 200, "{}", entry.0);
        let remote = entry.text("downstream_remote_address");
        ensure!(remote.starts_with(&format!("{}:", p.client.ip())), "{}", entry.0);
        ensure!(entry.number("duration") < 2000.0, "{}", entry.0);
    }
    Ok(())
}

#[test]
fn trace_headers_pass_and_the_log_holds_nothing_up() -> Result<()> {
    let p = pair()?;
    let traces = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "rojo=00f067aa0ba902b7"),
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
        ("x-b3-sampled", "1"),
        ("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-1"),
    ];
    let headers: Vec<String> = traces.iter().map(|(n, v)| format!("{n}: {v}")).collect();
    let args: Vec<&str> = headers.iter().flat_map(|h| ["-H", h.as_str()]).collect();
    let reply = p.client.get("http://server/", &args)?;
    for (name, value) in traces {
        ensure!(reply.seen(name).as_deref() == Some(value), "{name} became {:?}", reply.seen(name));
    }
    // A log that nobody reads (a pipe that is full) slows no request.
    let pipe = p.mesh.dir().join("pipe");
    fairlead_tests::shell::run("mkfifo", &[&pipe.display().to_string()])?;
    let held = std::fs::File::options().read(true).write(true).open(&pipe)?;
    p.mesh.mesh_config(&format!("accessLogFile: {}\naccessLogEncoding: JSON", pipe.display()));
    p.mesh.sync()?;
    let load = p.client.load("http://server/", &["-n", "2000", "-c", "8"])?;
    ensure!(load.status(200) == 2000 && load.figure("max_ms") < 9_000.0, "{}", load.0);
    drop(held);
    drop_everything(&p.mesh)
}

/// The daemon still answers.
fn drop_everything(mesh: &Mesh) -> Result<()> {
    mesh.metrics().map(|_| ())
}

/// Row 11.7: connections over the bound of a node are refused, counted and logged as OVERLOAD, at
/// the client's node and at the server's; those that are open stay, and room is given back.
#[test]
fn connections_over_the_bound_are_refused_counted_and_logged() -> Result<()> {
    const BOUND: &str = "20";
    for bounded in 0..2 {
        let mesh = Mesh::new(2)?;
        let client = mesh.pod(PodSpec::new("client"))?;
        let server = mesh.pod(PodSpec::new("server").on(1))?;
        mesh.service(service("server"));
        mesh.sync()?;
        for node in 0..2 {
            let bound: &[&str] = if node == bounded { &["--max-connections", BOUND] } else { &[] };
            mesh.spawn_daemon_with(node, bound)?;
        }
        (0..2).try_for_each(|node| mesh.wait_ready(node))?;
        let _echo = server.serve(&echo_args("server", "v1"))?;
        let before = mesh.metrics()?;
        // The session that carries them takes a place at the server's node, too.
        let count = if bounded == 0 { "20" } else { "19" };
        let mut held = client.spawn(&["hold", "server:9000", count])?;
        held.wait_for("held", Duration::from_secs(20))?;
        let refused = client.send("server:9000", "hello\\n", &["--quiet-ms", "3000"])?;
        // A reset that is quicker than the client's own system call fails its connect already.
        let error = refused.0["error"].as_str().unwrap_or_default();
        let reset = refused.end() == "reset" || error.contains("reset by peer");
        ensure!(refused.received().is_empty() && reset, "{}", refused.0);
        let reporter = ["source", "destination"][bounded];
        let labels = [("response_flags", "OVERLOAD"), ("reporter", reporter)];
        mesh.counted(&before, "istio_tcp_connections_failed_total", &labels, 1.0)?;
        mesh.counted(&before, "fairlead_connections_over_bound_total", &[], 1.0)?;
        let entry = mesh.logged(bounded, "the bound", |e| e.text("reason").contains("bound"))?;
        ensure!(entry.text("response_flags") == "UO", "{}", entry.0);
        // The client's node names what the other one said, in the same class.
        let labels = [("response_flags", "OVERLOAD"), ("reporter", "source")];
        mesh.counted(&before, "istio_tcp_connections_failed_total", &labels, 1.0)?;
        ensure!(held.alive(), "an open connection was closed");
        drop(held);
        eventually("room for a connection", Duration::from_secs(10), || {
            let sent = client.send("server:9000", "hello\\n", &["--quiet-ms", "500"])?;
            Ok(sent.received().contains("hello").then_some(()))
        })?;
    }
    Ok(())
}
