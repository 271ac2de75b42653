//! Configuration and certificates from a controller: a stream of objects over the real protocol
//! (`server`), nodes that go on without it, also across a restart (row 15.9), certificates over
//! Istio's service (2.8), roots that change under load (2.10), and destinations that a node was
//! not told about.

mod server;
mod told;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{
    Load, Mesh, Pod, PodSpec, Process, client::last_json, daemon, eventually, manifest,
};
use serde_json::Value;

use crate::common::{echo_args, heavy, service};
use server::TestController;

const MARKER: &str = "MARKER-controller-source";

struct World {
    _echoes: [Process; 2],
    client: Arc<Pod>,
    server: Arc<Pod>,
    controller: TestController,
    other: bool,
    mesh: Mesh,
}

impl World {
    /// A client on node 0, a server on node 1, told by a controller.
    fn new(more: &[&str]) -> Result<Self> {
        Self::with(more, false)
    }

    /// The same, with certificates of the other authority where `other`.
    fn with(more: &[&str], other: bool) -> Result<Self> {
        let mesh = Mesh::new(2)?;
        let client = mesh.pod(PodSpec::new("client").uid(&uid()))?;
        let server = mesh.pod(PodSpec::new("server").on(1).uid(&uid()))?;
        mesh.service(service("server"));
        // The directories are not what the daemons go by; the names are.
        mesh.sync()?;
        let mut controller = TestController::new(&mesh)?;
        controller.apply(&mesh.topology())?;
        controller.apply(&manifest::mesh_config("accessLogEncoding: JSON"))?;
        controller.start()?;
        let world = {
            // Pods are found by what runs in them.
            let echoes = [
                client.serve(&echo_args("client", "v1"))?,
                server.serve(&echo_args("server", "v1"))?,
            ];
            Self { _echoes: echoes, client, server, controller, other, mesh }
        };
        for node in 0..2 {
            world.spawn(node, more)?;
        }
        world.wait()?;
        Ok(world)
    }

    fn spawn(&self, node: usize, more: &[&str]) -> Result<()> {
        let mut arguments = self.controller.arguments(node);
        if self.other {
            arguments.retain(|a| a != "--ca-root" && !a.ends_with("root-cert.pem"));
            arguments.extend(self.controller.other_authority());
        }
        let log = self.mesh.node(node).access_log().display().to_string();
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.extend(["--access-log-file", &log]);
        all.extend(more);
        self.mesh.spawn_daemon_elsewhere(node, &all)
    }

    fn wait(&self) -> Result<()> {
        for node in 0..2 {
            self.mesh.wait_ready(node)?;
        }
        self.traffic()
    }

    fn status(&self, path: &str) -> Result<u16> {
        let url = format!("http://server{path}");
        let header = format!("x: {MARKER}");
        Ok(self.client.get(&url, &["-H", &header, "--timeout-ms", "3000"])?.status())
    }

    fn traffic(&self) -> Result<()> {
        self.becomes("/", 200)
    }

    fn becomes(&self, path: &str, status: u16) -> Result<()> {
        eventually(&format!("{path} to answer {status}"), Duration::from_secs(10), || {
            let found = self.status(path)?;
            ensure!(found == status, "{found}");
            Ok(Some(()))
        })
    }

    fn ready(&self, node: usize) -> Result<(u16, String)> {
        daemon::get(&self.mesh.node(node).netns, "/ready")
    }

    /// Waits for words in the log of a daemon: lines are written by a thread of their own.
    fn says(&self, node: usize, words: &str) -> Result<()> {
        eventually(&format!("{words:?} in the log of node {node}"), Duration::from_secs(5), || {
            Ok(self.mesh.output(node).contains(words).then_some(()))
        })
    }

    fn age(&self, node: usize) -> Result<f64> {
        let metrics = daemon::metrics(&self.mesh.node(node).netns)?;
        Ok(metrics.sum("fairlead_configuration_age_seconds", &[]))
    }
}

/// A uid, as an API server gives them: never the same twice, because daemons find a pod by its
/// uid among all processes of the machine, those of scenarios beside this one too.
fn uid() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("5d0f3a66-0b5c-4f0e-9a51-{:08x}{n:04x}", std::process::id())
}

fn deny(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, \
         namespace: default}}\nspec:\n  action: DENY\n  rules: [{{to: [{{operation: {{paths: \
         ['{path}']}}}}]}}]\n"
    )
}

#[test]
fn objects_of_a_stream_are_in_force_and_faults_are_told() -> Result<()> {
    let w = World::new(&[])?;
    let capture = w.mesh.capture()?;
    let reply = w.client.get("http://server/", &["-H", &format!("x: {MARKER}")])?;
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains("spiffe://cluster.local/ns/default/sa/client"), "XFCC is {xfcc:?}");
    let requests = w.controller.heard().requests.clone();
    for account in ["client", "server"] {
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
        ensure!(requests.contains(&id), "no certificate was asked for {id}: {requests:?}");
    }
    for hello in &w.controller.heard().hellos {
        ensure!(hello.protocol == 1 && hello.node.starts_with("node"), "{hello:?}");
    }

    // A change, and its end.
    w.controller.apply(&deny("/secret"))?;
    w.controller.settle(2)?;
    ensure!(w.status("/secret")? == 403 && w.status("/")? == 200);
    // A change that cannot be: told with the field; what was in force stays so.
    let broken = deny("/secret").replace("action: DENY", "action: FORBID");
    w.controller.apply(&broken)?;
    w.controller.settle(2)?;
    ensure!(w.status("/secret")? == 403 && w.status("/")? == 200);
    let (_, ack) = w.controller.heard().acks.last().cloned().context("no ack")?;
    let [rejected] = &ack.rejected[..] else { anyhow::bail!("{ack:?}") };
    ensure!(rejected.key.as_ref().is_some_and(|k| k.name == "deny") && rejected.last_good);
    ensure!(
        rejected.faults.iter().any(|f| f.field == "spec.action" && f.allowed.contains("DENY")),
        "{rejected:?}"
    );
    w.controller.delete("AuthorizationPolicy", "deny");
    w.controller.settle(2)?;
    ensure!(w.status("/secret")? == 200);
    // A policy that was never good closes its scope.
    w.controller.apply(&broken.replace("name: deny", "name: other"))?;
    w.controller.settle(2)?;
    ensure!(w.status("/")? == 403, "a policy that cannot be read let a request through");
    let (_, ack) = w.controller.heard().acks.last().cloned().context("no ack")?;
    ensure!(ack.rejected.len() == 1 && !ack.rejected[0].last_good, "{ack:?}");
    w.controller.delete("AuthorizationPolicy", "other");
    w.traffic()?;

    // A new stream tells what is there, and gets what differs: nothing.
    let (before, sent) = {
        let heard = w.controller.heard();
        (heard.inventories.len(), heard.sent)
    };
    w.controller.end_streams();
    eventually("the streams to be back", Duration::from_secs(10), || {
        Ok((w.controller.heard().inventories.len() >= before + 2).then_some(()))
    })?;
    std::thread::sleep(Duration::from_millis(500));
    {
        let heard = w.controller.heard();
        ensure!(heard.inventories[before..].iter().all(|n| *n > 5), "{:?}", heard.inventories);
        ensure!(heard.sent == sent, "{} objects were sent again", heard.sent - sent);
    }
    w.traffic()?;
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    wire.assert_all_tls(&[&w.client.ips[..], &w.server.ips].concat())?;
    Ok(())
}

#[test]
fn without_a_controller_nodes_go_on_and_say_how_old_their_configuration_is() -> Result<()> {
    let mut w = World::new(&[])?;
    w.controller.apply(&deny("/secret"))?;
    w.controller.settle(2)?;
    ensure!(w.status("/secret")? == 403);
    ensure!(w.age(0)? == 0.0 && w.ready(0)?.1.contains("configuration is current"));
    let capture = w.mesh.capture()?;
    w.controller.kill()?;
    w.controller.refuse_certificates(true);
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(w.status("/")? == 200 && w.status("/secret")? == 403);
    // From when it noticed.
    eventually("its age to be told", Duration::from_secs(10), || {
        ensure!(w.age(0)? > 1.0, "age {}", w.age(0)?);
        let (status, words) = w.ready(1)?;
        ensure!(status == 200 && words.contains("s old"), "{status} {words}");
        Ok(Some(()))
    })?;

    // Both daemons die and come back while nobody answers.
    for node in 0..2 {
        w.mesh.kill_daemon(node)?;
    }
    ensure!(w.status("/")? != 200, "no daemon, and a request went through");
    for node in 0..2 {
        w.spawn(node, &[])?;
    }
    w.wait()?;
    ensure!(w.status("/secret")? == 403, "the policy was lost with the daemon");
    for node in 0..2 {
        let (status, words) = w.ready(node)?;
        ensure!(status == 200 && words.contains("from the state on disk"), "{status} {words}");
        ensure!(w.age(node)? > 1.0, "age {}", w.age(node)?);
        let dump = daemon::json(&w.mesh.node(node).netns, "/config_dump")?;
        ensure!(dump["source"]["fromState"] == true, "{}", dump["source"]);
        w.says(node, "going on with the certificate that was kept")?;
    }
    let reply = w.client.get("http://server/", &[])?;
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains("/sa/client"), "no mTLS: {xfcc:?}");

    // The controller comes back: nothing is sent that is there.
    let (before, sent) = {
        let heard = w.controller.heard();
        (heard.inventories.len(), heard.sent)
    };
    w.controller.refuse_certificates(false);
    w.controller.start()?;
    eventually("the nodes to be current", Duration::from_secs(30), || {
        Ok((w.age(0)? == 0.0 && w.age(1)? == 0.0).then_some(()))
    })?;
    {
        let heard = w.controller.heard();
        ensure!(heard.inventories[before..].iter().all(|n| *n > 5), "{:?}", heard.inventories);
        ensure!(heard.sent == sent, "{} objects were sent again", heard.sent - sent);
    }
    ensure!(w.status("/secret")? == 403 && w.status("/")? == 200);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    wire.assert_all_tls(&[&w.client.ips[..], &w.server.ips].concat())?;
    Ok(())
}

#[test]
fn damaged_state_is_refused_as_a_whole() -> Result<()> {
    let mut w = World::new(&[])?;
    w.controller.apply(&deny("/secret"))?;
    w.controller.settle(2)?;
    let capture = w.mesh.capture()?;
    w.controller.kill()?;
    w.mesh.kill_daemon(1)?;
    let path = w.controller.state_dir(1).join("configuration.state");
    let mut state = std::fs::read(&path)?;
    let middle = state.len() / 2;
    state[middle] ^= 1;
    std::fs::write(&path, state)?;
    w.spawn(1, &[])?;
    let words = eventually("the daemon to speak", Duration::from_secs(10), || {
        let (status, words) = w.ready(1)?;
        ensure!(status == 503, "ready with damaged state: {words}");
        Ok(words.contains("there is no configuration yet").then_some(words))
    })?;
    ensure!(words.contains("https://192.168.77.1:15012"), "{words}");
    w.says(1, "the state on disk is not used, none of it")?;
    // The pod that the daemon before had captured is not let go.
    for _ in 0..3 {
        ensure!(w.status("/")? != 200 && w.status("/secret")? != 200);
        let direct = format!("http://{}:8080/{MARKER}", w.server.ip());
        let reply = w.mesh.wire().enter(|| {
            Ok(std::net::TcpStream::connect_timeout(
                &(w.server.ip(), 8080).into(),
                Duration::from_millis(300),
            )
            .is_ok())
        })?;
        ensure!(!reply, "{direct} answers past its capture");
    }
    w.controller.start()?;
    w.wait()?;
    ensure!(w.status("/secret")? == 403);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    Ok(())
}

#[test]
fn roots_change_under_load_without_a_failed_request() -> Result<()> {
    let _turn = heavy();
    let w = World::new(&["--cert-ttl", "10s"])?;
    let issuers = |node: usize| -> Result<Vec<String>> {
        let told = daemon::json(&w.mesh.node(node).netns, "/certs")?;
        let all = told["certificates"].as_array().context("no certificates")?;
        Ok(all.iter().filter_map(|c| c["chain"].as_str()).map(intermediate).collect())
    };
    let before = [issuers(0)?, issuers(1)?];
    let mut load =
        w.client.spawn(&["load", "http://server/", "-d", "24", "-r", "100", "-c", "8"])?;
    let mut fresh =
        w.client.spawn(&["load", "tcp://server:9000", "-d", "24", "-r", "20", "-c", "4"])?;
    std::thread::sleep(Duration::from_secs(1));
    w.controller.new_root()?;
    eventually("certificates of the new root", Duration::from_secs(15), || {
        for (node, before) in before.iter().enumerate() {
            let now = issuers(node)?;
            ensure!(!now.is_empty() && now.iter().all(|i| !before.contains(i)), "node {node}");
        }
        Ok(Some(()))
    })?;
    w.controller.forget_old_roots();
    load.wait(Duration::from_secs(60))?;
    fresh.wait(Duration::from_secs(60))?;
    for process in [&load, &fresh] {
        let load = Load(last_json(&process.output())?);
        ensure!(
            load.count("failed") == 0 && load.status(200) == load.count("requests"),
            "{}",
            load.0
        );
    }
    w.traffic()
}

#[test]
fn an_authority_that_is_not_the_controller_is_taken() -> Result<()> {
    let mut w = World::with(&["--cert-ttl", "6s"], true)?;
    let chains = |node: usize| -> Result<String> {
        Ok(daemon::json(&w.mesh.node(node).netns, "/certs")?["certificates"].to_string())
    };
    let reply = w.client.get("http://server/", &[])?;
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains("/sa/client"), "no mTLS: {xfcc:?}");
    // Renewed, and its root is none of the controller's bundle, which changes meanwhile.
    let before = chains(1)?;
    w.controller.new_root()?;
    eventually("a renewal", Duration::from_secs(10), || Ok((chains(1)? != before).then_some(())))?;
    for _ in 0..20 {
        ensure!(w.status("/")? == 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    w.controller.kill()
}

/// The second certificate of a chain.
fn intermediate(chain: &str) -> String {
    chain.split("-----BEGIN").nth(2).unwrap_or_default().to_owned()
}

#[test]
fn a_destination_that_nobody_told_of_is_asked_for_before_it_is_reached() -> Result<()> {
    let mut w = World::new(&[])?;
    let far = w.mesh.pod(PodSpec::new("far").on(1).uid(&uid()))?;
    let _echo = far.serve(&echo_args("far", "v1"))?;
    let topology = w.mesh.topology();
    let objects: Vec<&str> =
        topology.split("---\n").filter(|o| o.contains("name: far\n")).collect();
    ensure!(!objects.is_empty());
    w.controller.hide(&far.ip().to_string(), &objects.join("---\n"))?;
    eventually("node 1 to serve it", Duration::from_secs(10), || {
        let pods = daemon::json(&w.mesh.node(1).netns, "/capture")?["pods"].to_string();
        Ok(pods.matches("captured").count().eq(&2).then_some(()))
    })?;
    let capture = w.mesh.capture()?;
    ensure!(w.controller.heard().lookups.is_empty());
    let reply = w.client.get(&format!("http://{}:8080/{MARKER}", far.ip()), &[])?;
    ensure!(reply.status() == 200, "{}", reply.0);
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains("/sa/client"), "reached without the mesh: {xfcc:?}");
    ensure!(w.controller.heard().lookups == [far.ip().to_string()]);
    // An address of which nothing is known is outside of the mesh.
    let outside = w.mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let _outside_echo = outside.serve(&echo_args("outside", "v1"))?;
    let known = w.client.get(&format!("http://{}:8080/", outside.ip()), &[])?;
    ensure!(known.status() == 200, "{}", known.0);
    w.controller.kill()?;
    std::thread::sleep(Duration::from_millis(300));
    // That counts on while nobody can be asked; a private address that nobody asked for does not.
    let known = w.client.get(&format!("http://{}:8080/", outside.ip()), &[])?;
    ensure!(known.status() == 200, "{}", known.0);
    let stranger = w.mesh.pod(PodSpec::new("stranger").namespace("legacy"))?;
    let _stranger_echo = stranger.serve(&echo_args("stranger", "v1"))?;
    let path = "/stranger";
    let refused =
        w.client.get(&format!("http://{}:8080{path}", stranger.ip()), &["--timeout-ms", "3000"])?;
    ensure!(refused.status() != 200, "{}", refused.0);
    let why =
        |e: &fairlead_tests::Entry| e.0.to_string().contains("the controller cannot be asked");
    w.mesh.logged(0, "the reason", why)?;
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    Ok(())
}

#[test]
fn metrics_and_probes_are_served_apart_and_nothing_else() -> Result<()> {
    let w = World::new(&["--metrics-address", "0.0.0.0:15020"])?;
    let node = w.mesh.node(0).ips()[0];
    let get = |path: &str| -> Result<(u16, String)> {
        w.mesh.wire().enter(|| {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect_timeout(
                &(node, 15020).into(),
                Duration::from_secs(2),
            )?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {node}:15020\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("status")?;
            Ok((status, answer))
        })
    };
    ensure!(get("/ready")?.0 == 200 && get("/live")?.0 == 200);
    ensure!(get("/metrics")?.1.contains("fairlead_configuration_age_seconds 0"));
    for hidden in ["/config_dump", "/connections", "/certs", "/logging?level=debug", "/problems"] {
        ensure!(get(hidden)?.0 == 404, "{hidden} is shown to everybody");
    }
    let told: Value = daemon::json(&w.mesh.node(0).netns, "/config_dump")?;
    ensure!(told["source"]["current"] == true, "{}", told["source"]);
    Ok(())
}

#[test]
fn addresses_of_a_sandbox_are_told_again_by_the_next_daemon_and_taken_back() -> Result<()> {
    told::over_a_restart()
}
