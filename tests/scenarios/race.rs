//! A process whose first act is `connect()` (row 1.8): captured or refused, never plaintext, while
//! the processors are busy and the daemon is killed and started again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::client::last_json;
use fairlead_tests::wire::Tolerated;
use fairlead_tests::{Mesh, PodSpec, daemon};

use crate::common::{echo_args, heavy, seconds, service, while_busy};

const MARKER: &str = "MARKER-first-act";

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";

/// Starts in the suite; `cargo xtask soak` goes on for as long as it is told.
const STARTS: usize = 1000;

#[test]
fn first_acts_are_captured_or_refused_while_the_daemon_dies() -> Result<()> {
    let _turn = heavy();
    let mesh = Mesh::new(2)?;
    let mut pods = Vec::new();
    for i in 0..8 {
        pods.push(mesh.pod(PodSpec::new(&format!("client-{i}")).account("client"))?);
    }
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    // A daemon that is killed between connect() and its first byte leaves a silent connection,
    // which PERMISSIVE would take for a client in plaintext and answer.
    mesh.apply("strict", STRICT)?;
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let to = format!("{}:9000", server.ip());
    let capture = mesh.capture()?;
    let decided = || daemon::metrics(&mesh.node(0).netns).map(|metrics| metrics.decided());
    let before = decided()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let (mut carried, mut refused) = (0_u64, 0_u64);
    let until = Instant::now() + Duration::from_secs(seconds(0));
    let under_fire = || {
        std::thread::scope(|scope| -> Result<usize> {
            let killer = scope.spawn(|| -> Result<usize> {
                let mut kills = 0;
                while !stop.load(relaxed) {
                    std::thread::sleep(Duration::from_millis(700));
                    mesh.kill_daemon(0)?;
                    kills += 1;
                    std::thread::sleep(Duration::from_millis(150));
                    mesh.spawn_daemon(0)?;
                }
                Ok(kills)
            });
            let mut work = || -> Result<()> {
                let mut n = 0;
                while n < STARTS || Instant::now() < until {
                    let pod = &pods[n % pods.len()];
                    let told = last_json(&pod.run(&["connect-first", &to, MARKER])?)?;
                    let received = told["received"].as_str().unwrap_or_default();
                    if received.contains("hello") {
                        carried += 1;
                    } else {
                        refused += 1;
                    }
                    n += 1;
                }
                Ok(())
            };
            let outcome = work();
            stop.store(true, relaxed);
            let kills = killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
            eprintln!("{carried} carried, {refused} refused, {kills} kills");
            outcome?;
            ensure!(kills > 2, "only {kills} kills");
            Ok(kills)
        })
    };
    let kills = while_busy(under_fire)?;
    // Each first act was seen by the kernel programs, also where its SYN came to nothing.
    mesh.wait_ready(0)?;
    let decided = decided()? - before;
    ensure!(decided == carried + refused, "{decided} decisions of {} acts", carried + refused);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    let clients: Vec<_> = pods.iter().flat_map(|p| p.ips.clone()).collect();
    let ends = [&clients[..], &server.ips].concat();
    // One act at a time: no more than one session is on its way to a ClientHello when it is cut off.
    let seen = wire.assert_all_tls_but(&ends, Tolerated { aborted: kills, refused: 0 })?;
    eprintln!("{seen:?}");
    ensure!(carried > 0 && refused > 0, "{carried} carried, {refused} refused");
    Ok(())
}

#[test]
fn a_pod_that_is_made_while_the_daemon_runs_is_captured_before_it_is_told_so() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let to = format!("{}:9000", server.ip());
    let capture = mesh.capture()?;
    let mut pods = Vec::new();
    for i in 0..10 {
        let pod = mesh.pod(PodSpec::new(&format!("young-{i}")))?;
        // As a CNI plugin waits: until the daemon says that the pod is captured.
        mesh.sync()?;
        let told = last_json(&pod.run(&["connect-first", &to, MARKER])?)?;
        ensure!(told["received"].as_str().is_some_and(|r| r.contains("hello")), "{told}");
        pods.push(pod);
    }
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    let clients = pods.iter().flat_map(|pod| pod.ips.clone()).collect::<Vec<_>>();
    let sessions = wire.assert_all_tls(&[&clients[..], &server.ips].concat())?;
    ensure!(sessions >= pods.len(), "{sessions} sessions of {} pods", pods.len());
    Ok(())
}
