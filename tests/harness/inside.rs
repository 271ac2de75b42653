//! Pods of a cluster from beneath: programs started in them, and processes of theirs killed, by the
//! kernel alone. Both go on while API server, kubelet or containerd are away, where
//! `kubectl exec` does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_cluster::cgroups;
use rustix::process::{Pid, Signal, kill_process};

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
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let door = cgroups::unified(own.context("no cgroup v2")?)?.join("cgroup.procs");
        Ok(Inside { door, netns: format!("/proc/{pid}/ns/net").into() })
    }

    /// Kills the processes of a pod that run this program (SIGKILL).
    ///
    /// # Errors
    /// There is none.
    pub fn kill_in(&self, node: usize, namespace: &str, pod: &str, program: &str) -> Result<()> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        let uid = object["metadata"]["uid"].as_str().context("no uid")?;
        let cgroup = self.node_cgroup(node);
        // The kernel keeps 15 bytes of a name.
        let name: String = program.chars().take(15).collect();
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
            let groups = read("cgroup").unwrap_or_default();
            let is = read("comm").is_ok_and(|comm| comm.trim() == name);
            if !is || !groups.contains(uid) || !groups.contains(&cgroup) {
                continue;
            }
            let pid = entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
            kill_process(pid.context("no pid")?, Signal::KILL)?;
            killed += 1;
        }
        ensure!(killed > 0, "{namespace}/{pod} runs no {program} on node {node}");
        Ok(())
    }
}
