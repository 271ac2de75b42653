//! Bytes: balancing over endpoints (rows 3.1, 3.2), `tcp` routes (3.5, 3.7, 3.10), destinations
//! that the mesh does not know (3.16), endpoints that refuse (3.19), and their metrics (11.5-11.7).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Mesh, PodSpec, ServiceSpec};
use rustix::process::Signal;

use crate::common::{echo_args, pair, service, share, subsets, versions, virtual_service};

#[test]
fn connections_to_a_cluster_address_spread_over_all_pods() -> Result<()> {
    let v = versions(4)?;
    let load = v.client.load("tcp://server:9000", &["-n", "2000", "-c", "8"])?;
    ensure!(load.count("failed") == 0, "{}", load.0);
    let counts: Vec<u64> = (1..=4).map(|i| load.version(&format!("v{i}"))).collect();
    // LEAST_REQUEST, the default, favours the pods that answer sooner: those of the own node.
    ensure!(counts.iter().all(|n| *n > 150), "the spread is {counts:?}");
    let even = subsets("server", 4) + "  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n";
    v.mesh.apply("subsets", &even)?;
    let load = v.client.load("tcp://server:9000", &["-n", "2000", "-c", "8"])?;
    let counts: Vec<u64> = (1..=4).map(|i| load.version(&format!("v{i}"))).collect();
    // Chi-square of three degrees of freedom: 16.3 is exceeded once in a thousand runs.
    let chi: f64 = counts.iter().map(|n| (*n as f64 - 500.0).powi(2) / 500.0).sum();
    ensure!(chi < 16.3, "round robin gives {counts:?}");
    // A pod that is not ready gets nothing any more.
    v.servers[0].ready(false);
    v.mesh.sync()?;
    let load = v.client.load("tcp://server:9000", &["-n", "300"])?;
    ensure!(load.version("v1") == 0 && load.count("failed") == 0, "{}", load.0);
    Ok(())
}

#[test]
fn headless_pods_are_reached_one_by_one() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let mut pods = Vec::new();
    for i in 0..3 {
        let spec = PodSpec::new(&format!("db-{i}")).on(i % 2).account("db").label("app", "db");
        pods.push(mesh.pod(spec)?);
    }
    mesh.service(
        ServiceSpec::new("db").headless().port("tcp", 9000, 9000).port("http", 8080, 8080),
    );
    for pod in &pods {
        mesh.host(&format!("{}.db", pod.name), pod.ip());
    }
    mesh.start()?;
    let args: Vec<Vec<&str>> = pods.iter().map(|p| echo_args(&p.name, "v1")).collect();
    let mut running = Vec::new();
    for (pod, args) in pods.iter().zip(&args) {
        running.push(pod.serve(args)?);
    }
    for pod in &pods {
        let to = format!("{}.db", pod.name);
        let load = client.load(&format!("tcp://{to}:9000"), &["-n", "30"])?;
        ensure!(load.pod(&pod.name) == 30, "{to}: {}", load.0);
        let load = client.load(&format!("http://{to}:8080/"), &["-n", "30"])?;
        ensure!(load.pod(&pod.name) == 30, "{to}: {}", load.0);
    }
    Ok(())
}

#[test]
fn tcp_routes_by_port_weight_and_source() -> Result<()> {
    let v = versions(2)?;
    let other = v.mesh.pod(PodSpec::new("other").label("version", "v2"))?;
    v.mesh.sync()?;
    let routes = "  tcp:
  - match: [{port: 3306}]
    route: [{destination: {host: server, subset: v2}}]
  - match: [{port: 9001}]
    route: [{destination: {host: server, subset: v1}}]
  - match: [{sourceLabels: {app: other, version: v2}, port: 9000}]
    route: [{destination: {host: server, subset: v2}}]
  - match: [{port: 9000}]
    route:
    - destination: {host: server, subset: v1}
      weight: 80
    - destination: {host: server, subset: v2}
      weight: 20
";
    v.mesh.apply("routes", &virtual_service(routes))?;
    for _ in 0..5 {
        let sent = v.client.send("server:3306", "", &["--server-first", "--quiet-ms", "200"])?;
        ensure!(sent.greeting("version") == "v2", "{}", sent.0);
    }
    let load = v.client.load("tcp://server:9000", &["-n", "1000", "-c", "8"])?;
    share(load.version("v1"), 1000, 0.8)?;
    share(load.version("v2"), 1000, 0.2)?;
    let load = other.load("tcp://server:9000", &["-n", "100"])?;
    ensure!(load.version("v2") == 100, "sourceLabels: {}", load.0);
    Ok(())
}

#[test]
fn unknown_destinations_pass_or_are_refused() -> Result<()> {
    let p = pair()?;
    // An address outside the mesh: a server in the wire's namespace.
    let outside = p.mesh.pod(PodSpec::new("external").on(1).namespace("legacy"))?;
    p.mesh.remove_pod(&outside);
    p.mesh.sync()?;
    let _echo = outside.serve(&echo_args("external", "v1"))?;
    let (http, tcp) = (format!("http://{}:8080/", outside.ip()), format!("{}:9000", outside.ip()));
    let reply = p.client.get(&http, &[])?;
    ensure!(reply.status() == 200 && reply.echo("name") == "external", "ALLOW_ANY: {}", reply.0);
    let sent = p.client.send(&tcp, "x\\n", &["--half-close"])?;
    ensure!(sent.received().contains("bye"), "ALLOW_ANY: {}", sent.0);
    p.mesh
        .logged(0, "PassthroughCluster", |e| e.text("upstream_cluster") == "PassthroughCluster")?;
    p.mesh.mesh_config("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY");
    p.mesh.sync()?;
    let before = p.mesh.metrics()?;
    let reply = p.client.get(&http, &[])?;
    ensure!(reply.status() == 502, "REGISTRY_ONLY: {}", reply.0);
    let sent = p.client.send(&tcp, "x\\n", &["--half-close"])?;
    ensure!(!sent.received().contains("bye"), "REGISTRY_ONLY: {}", sent.0);
    p.mesh.counted(
        &before,
        "istio_tcp_connections_failed_total",
        &[("response_flags", "NO_ROUTE")],
        1.0,
    )?;
    let hole = [("destination_service_name", "BlackHoleCluster")];
    p.mesh.counted(&before, "istio_requests_total", &hole, 1.0)?;
    p.mesh.logged(0, "REGISTRY_ONLY", |e| e.text("reason").contains("REGISTRY_ONLY"))?;
    ensure!(
        p.client.get("http://server/", &[])?.status() == 200,
        "the mesh's own service is refused"
    );
    Ok(())
}

#[test]
fn another_endpoint_when_one_refuses() -> Result<()> {
    let mut v = versions(3)?;
    // One server's process ends, the pod stays "ready": connections to it are refused.
    v.echoes.remove(0);
    let load = v.client.load("tcp://server:9000", &["-n", "200", "-c", "4"])?;
    ensure!(load.count("failed") == 0, "bytes: {}", load.0);
    let load = v.client.load("http://server/", &["-n", "200", "-c", "4", "--fresh"])?;
    ensure!(load.status(200) == 200, "HTTP: {}", load.0);
    // All gone: a clear refusal.
    v.echoes.clear();
    let before = v.mesh.metrics()?;
    let reply = v.client.get("http://server/", &["--timeout-ms", "5000"])?;
    ensure!(reply.status() == 503, "{}", reply.0);
    let sent = v.client.send("server:9000", "x\\n", &["--quiet-ms", "3000"])?;
    ensure!(sent.received().is_empty() && sent.end() != "open", "{}", sent.0);
    v.mesh.counted(
        &before,
        "istio_tcp_connections_failed_total",
        &[("response_flags", "CONNECT")],
        1.0,
    )?;
    Ok(())
}

#[test]
fn bytes_and_connections_are_counted_to_the_last() -> Result<()> {
    let p = pair()?;
    let before = p.mesh.metrics()?;
    let size: u64 = 8 * 1024 * 1024;
    let repeat = (size / 8).to_string();
    let sent = p.client.send(
        "server:9001",
        "12345678",
        &["--repeat", &repeat, "--half-close", "--quiet-ms", "10000"],
    )?;
    ensure!(sent.received().trim() == size.to_string(), "{}", sent.0);
    for reporter in ["source", "destination"] {
        let labels = [
            ("reporter", reporter),
            ("destination_workload", "server"),
            ("source_workload", "client"),
        ];
        let closed = p.mesh.counted(&before, "istio_tcp_connections_closed_total", &labels, 1.0)?;
        let opened = p.mesh.counted(&before, "istio_tcp_connections_opened_total", &labels, 1.0)?;
        ensure!((opened, closed) == (1.0, 1.0), "{reporter}: {opened} opened, {closed} closed");
        // Istio's words: received is what came from the client.
        let received =
            p.mesh.counted(&before, "istio_tcp_received_bytes_total", &labels, size as f64)?;
        ensure!(received == size as f64, "{reporter}: {received} bytes received of {size}");
        let back = p.mesh.counted(&before, "istio_tcp_sent_bytes_total", &labels, 8.0)?;
        ensure!(back == sent.received().len() as f64, "{reporter}: {back} bytes sent");
    }
    let load = p.client.load("tcp://server:9000", &["-n", "500", "-c", "8"])?;
    ensure!(load.count("ok") == 500, "{}", load.0);
    for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        let seen = p.mesh.counted(&before, name, &[("reporter", "source")], 501.0)?;
        ensure!(seen == 501.0, "{name}: {seen}");
    }
    Ok(())
}

#[test]
fn half_close_and_reset_behave_as_on_plain_tcp() -> Result<()> {
    let p = pair()?;
    for to in ["server:9000", "server:3306"] {
        let sent = p.client.send(to, "one\\n", &["--half-close", "--quiet-ms", "3000"])?;
        ensure!(
            sent.received().contains("one\n") && sent.received().ends_with("bye\n"),
            "{to}: {}",
            sent.0
        );
        ensure!(sent.end() == "fin", "{to}: {}", sent.0);
    }
    Ok(())
}

#[test]
fn a_subset_without_pods_is_a_refusal_not_a_guess() -> Result<()> {
    let mesh = Mesh::new(1)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").label("version", "v1"))?;
    mesh.service(service("server"));
    mesh.apply("subsets", &subsets("server", 2))?;
    mesh.apply("routes", &virtual_service("  http:\n  - route: [{destination: {host: server, subset: v2}}]\n  tcp:\n  - route: [{destination: {host: server, subset: v2}}]\n"))?;
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let reply = client.get("http://server/", &[])?;
    ensure!(reply.status() == 503, "{}", reply.0);
    mesh.logged(0, "UH", |e| e.text("response_flags") == "UH")?;
    let sent = client.send("server:9000", "x\\n", &["--half-close"])?;
    ensure!(!sent.received().contains("hello"), "{}", sent.0);
    Ok(())
}

/// A session has the port of the application, which must not be taken for whoever binds it.
#[test]
fn an_application_starts_and_starts_again_while_sessions_to_its_ports_are_open() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let args = echo_args("server", "v1");
    let works = || -> Result<()> {
        let reply = client.get("http://server/", &[])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        Ok(())
    };
    // A client that comes before the application: its session stands.
    let early = client.get("http://server/", &[])?;
    ensure!(early.status() == 503, "{}", early.0);
    let mut first = server.serve(&args).context("the first start, after an early client")?;
    works()?;
    let held = client.trickle("server:9000")?;
    std::thread::sleep(Duration::from_millis(300));
    first.signal(Signal::KILL)?;
    first.wait(Duration::from_secs(5))?;
    let _second = server.serve(&args).context("a start while clients stay")?;
    works()?;
    drop(held);
    Ok(())
}
