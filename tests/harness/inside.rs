//! Pods of a cluster from beneath: programs started in them, and processes of theirs killed, by the
//! kernel alone. Both go on while API server, kubelet or containerd are away, where
//! `kubectl exec` does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_cluster::cgroups;
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Load, last_json};
use crate::cluster::APPS;
use crate::kube::KubeMesh;

/// Where a pod is, as the kernel has it: good as long as its sandbox is.
#[derive(Clone, Debug)]
pub struct Inside {
    door: PathBuf,
    netns: PathBuf,
}

impl Inside {
    /// A command that runs `program` of this machine in the pod's network namespace and cgroup, as
    /// `kubectl exec` would: not one instruction of it runs outside.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args([
                "-c",
                "echo $$ > \"$0\" && net=$1 && shift && exec nsenter --net=\"$net\" \"$@\"",
            ])
            .arg(&self.door)
            .arg(&self.netns)
            .arg(program);
        command
    }
}

impl KubeMesh {
    /// Where a pod is.
    ///
    /// # Errors
    /// It does not run on this node.
    pub fn inside(&self, node: usize, namespace: &str, pod: &str) -> Result<Inside> {
        let pid = self.process_of(node, namespace, pod)?;
        Ok(Inside { door: door(pid)?, netns: format!("/proc/{pid}/ns/net").into() })
    }

    /// Many requests from a pod of the image of `fairlead-apps`, by the program and the resolver in
    /// there. `kubectl exec` would do, but it loses an output now and then.
    ///
    /// # Errors
    /// The load generator cannot be run.
    pub fn load(&self, namespace: &str, pod: &str, url: &str, more: &[&str]) -> Result<Load> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        let all = self.processes_by(self.node_of(&object)?, &object)?;
        // Other loads run beside it, and end.
        let pid = all.into_iter().find(|pid| runs(*pid, APPS) && is_first(*pid));
        let pid = pid.with_context(|| format!("{namespace}/{pod} does not run {APPS}"))?;
        let done = Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\" && pid=$1 && shift && exec nsenter --target=\"$pid\" --net --mount \"$@\""])
            .arg(door(pid)?)
            .args([&pid.to_string(), APPS, "load", url])
            .args(more)
            .output()
            .context("running the load")?;
        let told = String::from_utf8_lossy(&done.stdout);
        let load =
            last_json(&told).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned());
        Ok(Load(load?))
    }

    /// Kills the processes of a pod that run this program (SIGKILL).
    ///
    /// # Errors
    /// There is none.
    pub fn kill_in(&self, node: usize, namespace: &str, pod: &str, program: &str) -> Result<()> {
        let mut killed = 0;
        for pid in self.processes_of(node, namespace, pod)? {
            if runs(pid, program) {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                kill_process(pid.context("no pid")?, Signal::KILL)?;
                killed += 1;
            }
        }
        ensure!(killed > 0, "{namespace}/{pod} runs no {program} on node {node}");
        Ok(())
    }
}

/// Whether a process is the one that a container lives and dies with: the first of its process
/// namespace. What `kubectl exec` or a test started in a container is not.
pub(crate) fn is_first(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.and_then(|pids| pids.split_whitespace().last()) == Some("1")
}

/// Whether a process runs this program.
fn runs(pid: u32, program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    // The kernel keeps 15 bytes of a name.
    let kept = name.get(..15).unwrap_or(name);
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|comm| comm.trim() == kept)
}

/// Where a process writes itself to be in the cgroup of another.
fn door(pid: u32) -> Result<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(cgroups::unified(own.context("no cgroup v2")?)?.join("cgroup.procs"))
}
