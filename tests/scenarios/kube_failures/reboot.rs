//! A node that is torn down and booted again, without a drain: its pods start while its daemon
//! does, and their first act is `connect()`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Component, app_pod, image};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use fairlead_tests::tls::hello;
use fairlead_tests::wire::{Captured, Tolerated};
use serde_json::Value;

use super::kills::ABORTED;
use super::traffic::{Row, Verdict, during, well};
use super::{MARKER, NS, Scene};
use crate::common::seconds;

/// Pods on the node: in a usual run, and in a soak.
const PODS: [usize; 2] = [30, 200];
/// How often the node is booted: so that a soak has a thousand starts.
const BOOTS: [usize; 2] = [1, 5];
/// How long all pods of a node may take, each of them.
const EACH: Duration = Duration::from_secs(4);
/// The node that is booted; the server is on the other one.
const NODE: usize = 2;
/// Connections side by side to where nobody answers.
const BLIND: u32 = 8;
/// What the first packets say.
const FIRST: &str = "MARKER-first-act";

/// A pod whose very first process, and so that of every boot, connects before anything else.
fn first(mesh: &KubeMesh, number: usize, server: IpAddr) -> String {
    let init = format!(
        "spec:\n\
         \x20 initContainers:\n\
         \x20 - {{name: init, image: {}, imagePullPolicy: Never, args: [connect-first, \
         \"{server}:9000\", {FIRST}-{number}]}}\n",
        image("fairlead-apps")
    );
    app_pod(&format!("first-{number}"), NS, &mesh.node_name(NODE), &["echo", "--http", "8080"])
        .replace("spec:\n", &init)
        .replace(&format!("labels: {{app: first-{number}}}"), "labels: {app: first}")
}

/// Pods on the node that connect first.
pub(super) struct Pods {
    count: usize,
    boots: usize,
    /// To whom they connect, on the other node.
    server: IpAddr,
    limit: Duration,
}

impl Pods {
    /// They are on their way.
    pub(super) fn start(scene: &Scene) -> Result<Self> {
        let soak = usize::from(seconds(0) > 0);
        let (count, boots) = (PODS[soak], BOOTS[soak]);
        let server: IpAddr = scene.near.ip().parse()?;
        let all: String = (0..count).map(|number| first(&scene.mesh, number, server)).collect();
        scene.mesh.apply(&all)?;
        Ok(Self { count, boots, server, limit: READY + EACH * u32::try_from(count)? })
    }

    /// Boots the node of theirs.
    pub(super) fn boot(&self, scene: &mut Scene) -> Result<()> {
        let label = ["pods", "-l", "app=first"];
        scene.mesh.wait(NS, &label, "condition=Ready", self.limit)?;
        self.connected(&scene.mesh)?;
        // The server on the node goes, and comes back elsewhere; a caller goes with it.
        scene.targets.retain(|target| target.caller.node != NODE);
        for target in scene.targets.iter_mut().filter(|target| target.to.pod() == "far") {
            if target.verdict == Verdict::Allowed {
                (target.verdict, target.rate) = (Verdict::Away, 1);
            }
            // Enough of them also where each waits in vain for a while.
            target.side_by_side = BLIND;
        }
        for boot in 1..=self.boots {
            self.booted(scene, boot)?;
        }
        for target in scene.targets.iter_mut().filter(|target| target.verdict == Verdict::Away) {
            target.verdict = Verdict::Allowed;
        }
        ensure!(scene.far.ip() == scene.mesh.pod_ip(NS, "far")?, "the server is elsewhere");
        let url = format!("http://{}:8080/{MARKER}", scene.far.ip());
        scene.mesh.until_meshed(NS, "client", &url, true)?;
        well(&scene.targets)
    }

    fn booted(&self, scene: &Scene, boot: usize) -> Result<()> {
        let mesh = &scene.mesh;
        let before = starts(mesh)?;
        mesh.stop_node(NODE)?;
        let runtime = mesh.log(Component::Containerd(NODE));
        let told = std::fs::read_to_string(&runtime)?.len();
        let wire = mesh.observe(1)?;
        let event = format!("boot {boot} of node {NODE}");
        let over = AtomicBool::new(false);
        let (rows, servers) = std::thread::scope(|scope| {
            let following = scope.spawn(|| scene.far.follow(mesh, NODE, &over));
            let rows = scene.captured(&event, || {
                during(&event, &scene.targets, || self.boot_and_wait(mesh, &before))
            });
            over.store(true, Ordering::Release);
            let servers = following.join().map_err(|_| anyhow::anyhow!("panicked"))?;
            rows.map(|rows| (rows, servers))
        })?;
        eprintln!("addresses of the server on the node: {servers:?}");
        mesh.wait_for_nodes()?;
        mesh.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)?;
        self.connected(mesh)?;
        held(std::fs::read_to_string(&runtime)?.get(told..).unwrap_or_default())?;
        let mut captured = wire.stop()?;
        for marker in [FIRST, MARKER] {
            captured.assert_no_plaintext(marker)?;
        }
        let opened = all_begin_with_a_hello(&captured, self.server)?;
        ensure!(opened > 0, "no connection to the server was seen");
        eprintln!("{opened} SYNs to the server on the wire, each followed by a ClientHello");
        // To the node that is booted: refused or not answered as long as nobody is there.
        captured.only_new();
        let moved = servers.iter().map(|ip| ip.parse()).collect::<Result<Vec<IpAddr>, _>>()?;
        let tolerated = Tolerated { aborted: ABORTED, refused: usize::MAX };
        let seen = captured.assert_all_tls_but(&[&scene.ends[..], &moved].concat(), tolerated)?;
        eprintln!("and among them and others: {seen:?}");
        rows.iter().try_for_each(Row::unharmed)
    }

    fn boot_and_wait(&self, mesh: &KubeMesh, before: &BTreeMap<String, Starts>) -> Result<()> {
        let start = Instant::now();
        mesh.boot_node(NODE)?;
        eventually("all pods of the node run again", self.limit, || {
            let now = starts(mesh)?;
            let back = |(name, was): (&String, &Starts)| {
                now.get(name).is_some_and(|is| is.first > was.first && is.ready)
            };
            let count = before.iter().filter(|pod| back(*pod)).count();
            ensure!(count == before.len(), "{count} of {} pods", before.len());
            Ok(Some(()))
        })?;
        eprintln!("{} pods were back {:?} after the boot", before.len(), start.elapsed());
        Ok(())
    }

    /// The first act of every pod, in its latest start, was carried.
    fn connected(&self, mesh: &KubeMesh) -> Result<()> {
        let args = ["logs", "-n", NS, "-l", "app=first", "-c", "init", "--tail=-1"];
        let told = mesh.kubectl(&[&args[..], &["--max-log-requests=300"]].concat())?;
        let (carried, refused): (Vec<&str>, Vec<&str>) =
            told.lines().partition(|line| line.contains("hello") && line.contains("near"));
        eprintln!("{} pods connected first, {} were refused", carried.len(), refused.len());
        refused.iter().for_each(|line| eprintln!("{line}"));
        if !refused.is_empty() {
            for node in [NODE, 1] {
                let log = mesh.node_log(node)?;
                let own = log.lines().filter(|line| !line.contains(MARKER));
                own.for_each(|line| eprintln!("node {node}: {line}"));
                let counters = mesh.metrics(node)?;
                for sample in counters.select("fairlead_capture_events_total", &[]) {
                    eprintln!("node {node}: {:?} {}", sample.labels, sample.value);
                }
            }
        }
        let all = carried.len() + refused.len();
        ensure!(all == self.count, "{all} of {} pods told what they did", self.count);
        ensure!(refused.is_empty(), "{} of {all} were refused", refused.len());
        Ok(())
    }
}

/// How often a pod was started, and whether it is ready.
#[derive(Debug)]
struct Starts {
    first: u64,
    ready: bool,
}

/// All pods of the mesh on the node.
fn starts(mesh: &KubeMesh) -> Result<BTreeMap<String, Starts>> {
    let node = format!("--field-selector=spec.nodeName={}", mesh.node_name(NODE));
    let list = mesh.json(&["get", "pods", "-n", NS, &node])?;
    let pods = list["items"].as_array().context("no list")?;
    let starts = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let ready = status["ready"] == true;
        let first = status["restartCount"].as_u64().unwrap_or(0);
        Some((pod["metadata"]["name"].as_str()?.to_owned(), Starts { first, ready }))
    };
    Ok(pods.iter().filter_map(starts).collect())
}

/// Sandboxes of the pods were begun before the node's daemon was started, and none of them was done
/// by then: in what the container runtime has said since the boot.
fn held(said: &str) -> Result<()> {
    let daemon = said
        .lines()
        .position(|line| line.contains("Name:node,") && line.contains("returns container id"));
    let before: Vec<&str> = said.lines().take(daemon.context("no daemon was started")?).collect();
    let sandboxes = || {
        let is = |line: &&&str| line.contains("RunPodSandbox for") && line.contains("Name:first-");
        before.iter().filter(is)
    };
    let done = sandboxes().filter(|line| line.contains("returns sandbox id")).count();
    let begun = sandboxes().count() - done;
    eprintln!("{begun} pods had begun to start before the daemon, {done} of them were started");
    ensure!(begun > 0 && done == 0, "{done} of {begun} pods were started without the daemon");
    Ok(())
}

/// Every connection to `server` on the wire, whoever began it, is TLS from its first byte on: a
/// SYN without a ClientHello would be one that was not captured. How many there were.
fn all_begin_with_a_hello(captured: &Captured, server: IpAddr) -> Result<usize> {
    let mut opened = 0;
    for flow in captured.flows.iter().filter(|flow| flow.destination.ip() == server) {
        if !flow.opened {
            continue;
        }
        let hello = hello(&flow.bytes).filter(|hello| !hello.server);
        ensure!(
            hello.is_some(),
            "a SYN from {} to {} without TLS: {:?}",
            flow.source,
            flow.destination,
            String::from_utf8_lossy(&flow.bytes[..flow.bytes.len().min(64)])
        );
        opened += 1;
    }
    Ok(opened)
}
