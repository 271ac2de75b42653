//! The daemon dies, is stopped, comes back: never plaintext, never a hang, and what is pinned in
//! the kernel is taken over.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::wire::Tolerated;
use fairlead_tests::{Load, client::last_json, daemon, eventually};

use crate::common::{pair, pair_on};

const MARKER: &str = "MARKER-daemon-death";

#[test]
fn after_kill_9_connections_are_refused_at_once_and_a_new_daemon_takes_over() -> Result<()> {
    let p = pair()?;
    let pod = format!("http://{}:8080/{MARKER}", p.server.ip());
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    let ends = [&p.client.ips[..], &p.server.ips].concat();
    let decided = || daemon::metrics(&p.mesh.node(0).netns).map(|metrics| metrics.decided());
    for killed in [0, 1] {
        let capture = p.mesh.capture()?;
        let (before, mut begun) = (decided()?, 0);
        p.mesh.kill_daemon(killed)?;
        for url in [pod.as_str(), "http://server/"] {
            let mut times = Vec::new();
            for _ in 0..5 {
                let start = Instant::now();
                begun += 1;
                let reply =
                    p.client.get(url, &["-H", &format!("x: {MARKER}"), "--timeout-ms", "12000"])?;
                ensure!(reply.status() != 200, "node {killed} is dead, and {url} gave {}", reply.0);
                times.push(start.elapsed());
            }
            // The client's node answers at once; the other node's death is a refused session.
            let at_once = |took: &Duration| *took < Duration::from_secs(1);
            let none_hung = times.iter().all(|took| *took < Duration::from_secs(6));
            ensure!(
                none_hung && (killed == 1 || times.iter().any(at_once)),
                "node {killed}: {url} hung: {times:?}"
            );
        }
        let start = Instant::now();
        p.mesh.spawn_daemon(killed)?;
        p.mesh.wait_ready(killed)?;
        eventually("traffic to flow again", Duration::from_secs(10), || {
            begun += 1;
            Ok((p.client.get("http://server/", &[])?.status() == 200).then_some(()))
        })?;
        eprintln!("node {killed} was back after {:?}", start.elapsed());
        let wire = capture.stop()?;
        wire.assert_no_plaintext(MARKER)?;
        // Refused are sessions to where nobody takes them, and no SYN of an application: the kernel
        // programs have seen them all. (A refused client goes on to the next address of a name.)
        let refused = if killed == 0 { 0 } else { usize::MAX };
        let seen = wire.assert_all_tls_but(&ends, Tolerated { aborted: 0, refused })?;
        let decided = decided()? - before;
        eprintln!("{seen:?}, {decided} decisions of {begun} connections");
        let all = if killed == 0 { decided >= begun } else { decided == begun };
        ensure!(all, "{decided} decisions of {begun} connections");
    }
    Ok(())
}

#[test]
fn the_pods_of_a_dead_node_are_not_reached_in_plaintext_from_outside() -> Result<()> {
    let p = pair()?;
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";
    p.mesh.apply("strict", strict)?;
    let outside = p.mesh.pod(fairlead_tests::PodSpec::new("outside").namespace("legacy"))?;
    p.mesh.sync()?;
    let to = format!("{}:9000", p.server.ip());
    ensure!(!outside.send(&to, "x\\n", &[])?.received().contains("hello"));
    p.mesh.kill_daemon(1)?;
    for _ in 0..5 {
        let start = Instant::now();
        let sent = outside.send(&to, "x\\n", &[])?;
        ensure!(!sent.received().contains("hello"), "the dead daemon let it through: {}", sent.0);
        // `send` gives up after ten seconds.
        ensure!(start.elapsed() < Duration::from_secs(8), "it hung: {}", sent.0);
    }
    Ok(())
}

#[test]
fn sigterm_drains_and_a_second_one_ends_at_once() -> Result<()> {
    let p = pair_on(0)?;
    // A request that takes a while when the end begins is finished.
    let connected = || {
        eventually("a connection", Duration::from_secs(20), || {
            let told = daemon::json(&p.mesh.node(0).netns, "/connections?limit=1")?;
            Ok((told["total"].as_u64() > Some(0)).then_some(()))
        })?;
        // Its first bytes follow.
        std::thread::sleep(Duration::from_millis(500));
        anyhow::Ok(())
    };
    let mut slow = p.client.spawn(&["get", "http://server/", "-H", "x-echo-delay-ms: 5000"])?;
    connected()?;
    p.mesh.daemon(0, |d| d.process().signal(rustix::process::Signal::TERM))?;
    slow.wait(Duration::from_secs(20))?;
    let reply = last_json(&slow.output())?;
    ensure!(reply["status"] == 200, "the request in flight was cut: {reply}");
    p.mesh.daemon(0, |d| d.process().wait(Duration::from_secs(10)).map(|_| ()))?;
    p.mesh.spawn_daemon(0)?;
    p.mesh.wait_ready(0)?;
    eventually("traffic", Duration::from_secs(5), || {
        Ok((p.client.get("http://server/", &[])?.status() == 200).then_some(()))
    })?;
    // A stream that never ends: the second signal does not wait for it.
    let long = p.client.trickle("server:9000")?;
    connected()?;
    p.mesh.daemon(0, |d| {
        d.process().signal(rustix::process::Signal::TERM)?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(d.process().alive(), "it did not wait for the connection");
        let (status, _) =
            daemon::get(&p.mesh.node(0).netns, "/ready").unwrap_or((503, String::new()));
        ensure!(status == 503, "ready while draining");
        d.process().signal(rustix::process::Signal::TERM)?;
        d.process().wait(Duration::from_secs(3)).map(|_| ())
    })?;
    drop(long);
    Ok(())
}

#[test]
fn a_restart_under_load_costs_refusals_and_no_plaintext() -> Result<()> {
    let p = pair()?;
    let capture = p.mesh.capture()?;
    let header = format!("x: {MARKER}");
    let mut load = p.client.spawn(&[
        "load",
        "http://server/",
        "-d",
        "6",
        "-c",
        "4",
        "-r",
        "200",
        "-H",
        &header,
    ])?;
    std::thread::sleep(Duration::from_millis(1500));
    p.mesh.kill_daemon(0)?;
    std::thread::sleep(Duration::from_millis(300));
    p.mesh.spawn_daemon(0)?;
    p.mesh.wait_ready(0)?;
    load.wait(Duration::from_secs(30))?;
    let load = Load(last_json(&load.output())?);
    ensure!(load.status(200) > 500, "{}", load.0);
    ensure!(load.count("failed") > 0, "the kill was not noticed: {}", load.0);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    // Four connections at a time: no more sessions than that were on their way to a ClientHello.
    let ends = [&p.client.ips[..], &p.server.ips].concat();
    wire.assert_all_tls_but(&ends, Tolerated { aborted: 4, refused: 0 })?;
    Ok(())
}
