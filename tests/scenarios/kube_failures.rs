//! Rolling updates on a real cluster with traffic flowing and counted (row 15.6): the DaemonSet of
//! the node daemons and the Deployment of the controller are restarted while new connections are
//! opened within a node and between nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use fairlead_tests::{Load, client::last_json};

const NAMESPACE: &str = "load";
const MARKER: &str = "MARKER-kube-failures";
/// Seconds of one piece of load; pieces follow each other until the event is over.
const PIECE: &str = "5";

/// What came of the connections during an event.
struct Row {
    event: &'static str,
    to: String,
    took: Duration,
    connections: u64,
    failed: u64,
    errors: String,
}

#[test]
fn rolling_updates_fail_no_new_connection() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    mesh.namespace(NAMESPACE, "istio.io/dataplane-mode: ambient")?;
    let echo = |name: &str, node: usize| {
        let args = ["echo", "--name", name, "--http", "8080", "--tcp", "9000"];
        app_pod(name, NAMESPACE, &mesh.node_name(node), &args)
    };
    mesh.apply(&format!("{}{}{}", echo("client", 1), echo("near", 1), echo("far", 2)))?;
    mesh.ready(NAMESPACE)?;
    let mut targets = Vec::new();
    for name in ["near", "far"] {
        let ip = mesh.pod_ip(NAMESPACE, name)?;
        let url = format!("http://{ip}:8080/{MARKER}");
        mesh.until_meshed(NAMESPACE, "client", &url, true)?;
        targets.push((format!("{name}, HTTP"), url));
        targets.push((format!("{name}, TCP"), format!("tcp://{ip}:9000")));
    }
    let wire = mesh.observe(1)?;
    let mut rows = Vec::new();
    for (event, what) in [
        ("rollout of ds/fairlead-node", "daemonset/fairlead-node"),
        ("rollout of deploy/fairlead-controller", "deployment/fairlead-controller"),
    ] {
        rows.extend(during(&mesh, event, &targets, || {
            mesh.kubectl(&["rollout", "restart", "-n", SYSTEM, what])?;
            mesh.wait_rollout(SYSTEM, what, READY)
        })?);
    }
    for Row { event, to, took, connections, failed, errors } in &rows {
        eprintln!(
            "| {event} | {to} | {:.0} s | {connections} new connections | {failed} failed | {errors} |",
            took.as_secs_f64()
        );
    }
    let wire = wire.stop()?;
    if wire.saw_plaintext(MARKER) || rows.iter().any(|row| row.failed > 0) {
        let log = mesh.node_log(1)?;
        log.lines().filter(|line| !line.contains("MARKER")).take(80).for_each(|l| eprintln!("{l}"));
    }
    wire.assert_no_plaintext(MARKER)?;
    for row in &rows {
        ensure!(row.failed == 0, "{} to {}: {} failed", row.event, row.to, row.failed);
        ensure!(row.connections > 100, "{} to {}: too few to say anything", row.event, row.to);
    }
    Ok(())
}

/// What happened to new connections to each target while `work` was under way, and a piece after.
fn during(
    mesh: &KubeMesh,
    event: &'static str,
    targets: &[(String, String)],
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Row>> {
    let over = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let loads: Vec<_> = targets
            .iter()
            .map(|(to, url)| {
                let over = &over;
                scope.spawn(move || -> Result<Row> {
                    let mut row = Row {
                        event,
                        to: to.clone(),
                        took: Duration::ZERO,
                        connections: 0,
                        failed: 0,
                        errors: String::new(),
                    };
                    loop {
                        let last = over.load(Ordering::Acquire);
                        let program = "/usr/local/bin/fairlead-apps";
                        let load = [program, "load", url, "-d", PIECE, "-c", "2", "--fresh"];
                        let told = mesh.exec(NAMESPACE, "client", &load)?;
                        let load = Load(last_json(&told)?);
                        row.connections += load.count("requests");
                        row.failed += load.count("failed");
                        if url.starts_with("http") {
                            row.failed += load.count("ok") - load.status(200);
                        }
                        if load.count("failed") > 0 {
                            row.errors.push_str(&load.errors());
                        }
                        if last {
                            return Ok(row);
                        }
                    }
                })
            })
            .collect();
        // Traffic flows before anything happens.
        std::thread::sleep(Duration::from_secs(1));
        let worked = work();
        let took = start.elapsed();
        over.store(true, Ordering::Release);
        let mut rows = Vec::new();
        for load in loads {
            let row = load.join().map_err(|_| anyhow::anyhow!("a load panicked"))?;
            rows.push(Row { took, ..row.context("load")? });
        }
        worked.map(|()| rows)
    })
}
