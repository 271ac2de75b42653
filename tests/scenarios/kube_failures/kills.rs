//! kill -9 of node daemons, controller, API server, etcd, kubelet and containerd.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Component;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use fairlead_tests::wire::Tolerated;

use super::traffic::{Row, Verdict, well};
use super::{DENY, NS, Scene};

/// New connections a second to each target: there is work beside.
pub(super) const RATE: u32 = 40;
/// How long a killed component stays away.
const AWAY: Duration = Duration::from_secs(5);
/// Connections of a node fail no longer than this when its daemon is killed: kubelet starts it
/// again within seconds the first time.
const DAEMON_AWAY: Duration = Duration::from_secs(30);
/// Sessions that a daemon which is killed has on the way to their ClientHello, at most.
pub(super) const ABORTED: usize = 8;

pub(super) fn daemons(scene: &Scene) -> Result<()> {
    (1..=2).try_for_each(|node| daemon(scene, node))
}

/// Of all that only tells the daemons what to do: nobody notices.
pub(super) fn control(scene: &Scene) -> Result<()> {
    let mesh = &scene.mesh;
    for (event, leads) in [("controller, follower", false), ("controller, leader", true)] {
        scene.unharmed(&format!("kill -9 of {event}"), || controller(mesh, leads))?;
    }
    let components =
        [Component::Apiserver, Component::Etcd, Component::Kubelet(1), Component::Containerd(1)];
    for component in components {
        scene.unharmed(&format!("kill -9 of {component}"), || {
            mesh.kill(component)?;
            std::thread::sleep(AWAY);
            mesh.start(component)
        })?;
    }
    mesh.wait_for_api()?;
    mesh.wait_for_nodes()?;
    well(&scene.targets)?;
    still_told(scene)
}

/// While a daemon is away, connections of its pods are refused; others go on.
fn daemon(scene: &Scene, node: usize) -> Result<()> {
    let mesh = &scene.mesh;
    let event = format!("kill -9 of the daemon of node {node}");
    let pod = mesh.pod_on(node, "fairlead-node")?;
    // Where a daemon dies that is to take sessions, those of the other one are refused: the kernel
    // programs there account for every connection of an application ([`Scene::captured`]).
    let refused = if node == 1 { 0 } else { usize::MAX };
    let rows = scene.watched(&event, Tolerated { aborted: ABORTED, refused }, || {
        restarted(mesh, node, &pod, "fairlead-node")?;
        well(&scene.targets)
    })?;
    for row in rows.iter().filter(|row| row.verdict == Verdict::Allowed) {
        // All of them begin on node 1; those to `far` end on node 2.
        if node == 1 || row.to.starts_with("far") {
            ensure!(row.failed() > 0, "{event}: connections to {} went on without it", row.to);
            ensure!(
                row.lasted() < DAEMON_AWAY,
                "{event}: {} failed for {:?}",
                row.to,
                row.lasted()
            );
        } else {
            Row::unharmed(row)?;
        }
    }
    Ok(())
}

/// Kills the program of a pod; kubelet starts it again.
fn restarted(mesh: &KubeMesh, node: usize, pod: &str, program: &str) -> Result<()> {
    let before = mesh.restarts(SYSTEM, pod)?;
    mesh.kill_in(node, SYSTEM, pod, program)?;
    eventually(&format!("{pod} is started again"), READY, || {
        Ok((mesh.restarts(SYSTEM, pod)? > before).then_some(()))
    })?;
    mesh.wait(SYSTEM, &[&format!("pod/{pod}")], "condition=Ready", READY)
}

/// Who writes status, and how often that has changed.
fn leader(mesh: &KubeMesh) -> Result<(String, u64)> {
    let lease = mesh.json(&["get", "lease", "-n", SYSTEM, "fairlead-controller"])?;
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let (pod, _) = holder.split_once('_').with_context(|| format!("holder {holder:?}"))?;
    Ok((pod.to_owned(), spec["leaseTransitions"].as_u64().unwrap_or(0)))
}

fn controller(mesh: &KubeMesh, leads: bool) -> Result<()> {
    let (leading, before) = leader(mesh)?;
    let list = mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let pod = pods.iter().find(|pod| (pod["metadata"]["name"] == leading.as_str()) == leads);
    let pod = pod.with_context(|| format!("no such replica beside {leading}"))?;
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let node = mesh.node_of(pod)?;
    let start = Instant::now();
    restarted(mesh, node, name, "fairlead-controller")?;
    if leads {
        eventually("another leader", READY, || Ok((leader(mesh)?.1 > before).then_some(())))?;
        eprintln!("another replica led {:?} after the kill", start.elapsed());
    }
    Ok(())
}

/// From the API server to the nodes: what kubectl says is done, as before.
fn still_told(scene: &Scene) -> Result<()> {
    let mesh = &scene.mesh;
    let url = format!("http://{}:8080/", mesh.pod_ip(NS, "far")?);
    let becomes = |status: u16| {
        let start = Instant::now();
        eventually(&format!("{status} for a change of policy"), READY, || {
            let reply = mesh.get(NS, "denied", &url, &[])?;
            ensure!(reply.status() == status, "{}", reply.0);
            Ok(Some(()))
        })?;
        eprintln!("a change of policy was seen {:?} later", start.elapsed());
        anyhow::Ok(())
    };
    mesh.delete(DENY)?;
    becomes(200)?;
    mesh.apply(DENY)?;
    becomes(403)
}
