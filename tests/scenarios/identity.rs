//! Identities: one per service account, never shared (rows 2.1, 2.6, 2.7), told to the
//! application in `x-forwarded-client-cert` (2.22), rotated without a failed request (2.9).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{Load, Mesh, PodSpec, client::last_json, daemon};
use serde_json::Value;

use crate::common::{echo_args, heavy, pair, seconds, service};

#[test]
fn two_accounts_of_one_node_are_told_apart() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let alice = mesh.pod(PodSpec::new("alice"))?;
    let bob = mesh.pod(PodSpec::new("bob"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let before = mesh.metrics()?;
    for _ in 0..3 {
        for pod in [&alice, &bob] {
            let path = format!("/from-{}", pod.name);
            let reply = pod.get(&format!("http://server{path}"), &[])?;
            ensure!(reply.status() == 200, "{}", reply.0);
            let id = format!("spiffe://cluster.local/ns/default/sa/{}", pod.name);
            let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
            ensure!(xfcc.contains(&format!("URI={id}")), "XFCC is {xfcc:?}");
            ensure!(
                xfcc.contains("By=spiffe://cluster.local/ns/default/sa/server"),
                "XFCC is {xfcc:?}"
            );
            let entry = mesh.logged(1, &path, |e| e.text("path") == path)?;
            ensure!(entry.text("source_principal") == id, "{}", entry.0);
            let labels = [("source_principal", id.as_str()), ("reporter", "destination")];
            mesh.counted(&before, "istio_requests_total", &labels, 1.0)?;
        }
    }
    // What a client claims about itself does not get through.
    let forged = alice.get(
        "http://server/",
        &["-H", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/root"],
    )?;
    let xfcc = forged.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(!xfcc.contains("sa/root") && xfcc.contains("sa/alice"), "XFCC is {xfcc:?}");
    // A node holds certificates of its own pods' accounts only, and shows no key.
    let held = daemon::json(&mesh.node(0).netns, "/certs")?.to_string();
    ensure!(held.contains("sa/alice") && held.contains("sa/bob"), "{held}");
    ensure!(!held.contains("sa/server"), "a certificate of another node's pod: {held}");
    ensure!(!held.contains("PRIVATE"), "the admin API shows a key");
    Ok(())
}

fn serials(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key.to_lowercase().contains("serial") {
                    into.insert(value.to_string());
                }
                serials(value, into);
            }
        }
        Value::Array(all) => all.iter().for_each(|v| serials(v, into)),
        _ => {}
    }
}

#[test]
fn rotation_under_load_fails_no_request() -> Result<()> {
    let _turn = heavy();
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.sync()?;
    for node in 0..2 {
        mesh.spawn_daemon_with(node, &["--cert-ttl", "20s"])?;
    }
    for node in 0..2 {
        mesh.wait_ready(node)?;
    }
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let known = |node: usize| -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        serials(&daemon::json(&mesh.node(node).netns, "/certs")?, &mut all);
        Ok(all)
    };
    ensure!(client.get("http://server/", &[])?.status() == 200);
    let before = [known(0)?, known(1)?];
    ensure!(before.iter().all(|s| !s.is_empty()), "no serial numbers: {before:?}");
    // Long enough for every certificate to be renewed once.
    let length = seconds(25).max(25);
    let duration = length.to_string();
    let mut load =
        client.spawn(&["load", "http://server/", "-d", &duration, "-r", "300", "-c", "8"])?;
    let mut fresh =
        client.spawn(&["load", "tcp://server:9000", "-d", &duration, "-r", "30", "-c", "4"])?;
    load.wait(Duration::from_secs(length + 30))?;
    fresh.wait(Duration::from_secs(length + 30))?;
    for process in [&load, &fresh] {
        let load = Load(last_json(&process.output())?);
        ensure!(
            load.count("failed") == 0 && load.status(200) == load.count("requests"),
            "{}",
            load.0
        );
    }
    for (node, before) in before.iter().enumerate() {
        ensure!(
            known(node)?.is_disjoint(before),
            "node {node} still has a certificate of the start"
        );
    }
    Ok(())
}

#[test]
fn without_a_certificate_connections_are_refused_with_the_reason() -> Result<()> {
    let p = pair()?;
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    p.mesh.stop_daemon(0)?;
    // The authority is lost while the daemon is down.
    let (ca, away) = (p.mesh.ca_dir(), p.mesh.dir().join("ca-away"));
    std::fs::rename(&ca, &away)?;
    std::fs::write(&ca, "not a directory")?;
    p.mesh.spawn_daemon(0)?;
    std::thread::sleep(Duration::from_secs(2));
    let capture = p.mesh.capture()?;
    let reply = p.client.get("http://server/MARKER-no-certificate", &["--timeout-ms", "3000"])?;
    ensure!(reply.status() != 200, "{}", reply.0);
    capture.stop()?.assert_no_plaintext("MARKER-no-certificate")?;
    std::fs::remove_file(&ca)?;
    std::fs::rename(&away, &ca)?;
    Ok(())
}
