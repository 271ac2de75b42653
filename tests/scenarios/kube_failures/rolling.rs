//! Rolling updates of DaemonSet and controller.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::Component;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Scene;

/// New connections a second to each of four targets: no more than the wire's observer keeps up
/// with.
pub(super) const RATE: u32 = 250;
const DAEMONS: &str = "daemonset/fairlead-node";
/// So long the DaemonSet's controller sees nothing: a daemon has handed over and drained by then,
/// and the controller keeps its lease.
const BLIND: Duration = Duration::from_secs(7);

pub(super) fn updates(scene: &Scene) -> Result<()> {
    let mesh = &scene.mesh;
    let rolled = |what: &'static str| {
        move || {
            mesh.kubectl(&["rollout", "restart", "-n", SYSTEM, what])?;
            mesh.wait_rollout(SYSTEM, what, READY)
        }
    };
    told(mesh, scene.unharmed("rollout of ds/fairlead-node", rolled(DAEMONS)))?;
    let held_up = "rollout of ds/fairlead-node, its controller held up";
    told(mesh, scene.unharmed(held_up, || blindly(mesh)))?;
    let controller = "deployment/fairlead-controller";
    told(mesh, scene.unharmed("rollout of deploy/fairlead-controller", rolled(controller)))
}

/// Shows what the daemon of node 1 said when something is wrong.
fn told(mesh: &KubeMesh, outcome: Result<()>) -> Result<()> {
    if outcome.is_err() {
        let log = mesh.node_log(1)?;
        let own = log.lines().filter(|line| !line.contains("MARKER"));
        own.take(80).for_each(|line| eprintln!("{line}"));
    }
    outcome
}

/// The controller of DaemonSets learns late that a successor is ready. Kubelet starts again what
/// has ended by then: the daemon that was taken over from must not be among it.
fn blindly(mesh: &KubeMesh) -> Result<()> {
    let before = daemons(mesh)?.len();
    mesh.kubectl(&["rollout", "restart", "-n", SYSTEM, DAEMONS])?;
    // Once it is made, nobody but the scheduler and kubelet are needed for it to run.
    eventually("a successor is there", READY, || {
        let count = daemons(mesh)?.len();
        ensure!(count > before, "{count} daemons");
        Ok(Some(()))
    })?;
    let held = Stopped::new(mesh, Component::ControllerManager)?;
    eventually("a successor runs", READY, || {
        let running = |pod: &&Value| pod["status"]["phase"] == "Running";
        let count = daemons(mesh)?.iter().filter(running).count();
        ensure!(count > before, "{count} daemons");
        Ok(Some(()))
    })?;
    std::thread::sleep(BLIND);
    let pods = daemons(mesh)?;
    drop(held);
    ensure!(pods.len() > before, "the daemon before was not there any more");
    for pod in &pods {
        let (name, state) = (&pod["metadata"]["name"], &pod["status"]["containerStatuses"][0]);
        ensure!(state["restartCount"] == 0, "{name} was started again: {state}");
    }
    mesh.wait_rollout(SYSTEM, DAEMONS, READY)
}

fn daemons(mesh: &KubeMesh) -> Result<Vec<Value>> {
    let pods = mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-node"])?;
    pods["items"].as_array().cloned().context("no list")
}

/// A component that is stopped (SIGSTOP) until this is dropped.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new(mesh: &KubeMesh, component: Component) -> Result<Self> {
        let known = |pid| i32::try_from(pid).ok().and_then(Pid::from_raw);
        let this = Self(mesh.pids(component)?.into_iter().filter_map(known).collect());
        ensure!(!this.0.is_empty(), "{component} does not run");
        this.0.iter().try_for_each(|pid| kill_process(*pid, Signal::STOP))?;
        Ok(this)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}
