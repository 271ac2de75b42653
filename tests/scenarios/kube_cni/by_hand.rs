//! The plugin on a node, run as a runtime would that speaks CNI 1.1: CHECK, STATUS and GC, which
//! containerd does not use with the older versions that it speaks.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::eventually;
use serde_json::{Value, json};

use super::{CONFLIST, READY};
use crate::kube;

const PLUGIN: &str = "/opt/cni/bin/fairlead-cni";
/// The plugin gives up a daemon that does not answer after 3 s, with room for a busy machine.
const BOUND: Duration = Duration::from_secs(15);

/// Codes of the specification: the configuration is wrong, try again later, not available.
const INVALID: i64 = 7;
const LATER: i64 = 11;
const UNAVAILABLE: i64 = 50;

/// A sandbox of the node.
struct Sandbox {
    container: String,
    uid: String,
    namespace: String,
    name: String,
    ip: String,
    netns: String,
}

pub(super) fn check_status_and_gc(cluster: &Cluster) -> Result<()> {
    let server = sandbox(cluster, "shop", "server")?;
    let held = sandbox(cluster, "shop", "held")?;
    let plugin = Plugin::new(cluster)?;
    let fine = |outcome: Outcome| ensure_fine(&outcome);

    // As ADD left it; not so in another pod's namespace, nor a pod that nobody knows.
    fine(plugin.check(&server)?)?;
    let elsewhere = Sandbox { netns: held.netns.clone(), ..sandbox(cluster, "shop", "server")? };
    plugin.check(&elsewhere)?.failed(LATER)?;
    let nobody = Sandbox { name: "nobody".into(), ..sandbox(cluster, "shop", "server")? };
    plugin.check(&nobody)?.failed(LATER)?;

    let (lenient, strict) = (plugin.conf(&json!({})), json!({"statusRequiresDaemon": true}));
    let strict = plugin.conf(&strict);
    for conf in [&lenient, &strict] {
        fine(plugin.run("STATUS", None, conf)?)?;
    }
    let stopped = Stopped::new(cluster)?;
    plugin.run("STATUS", None, &strict)?.failed(UNAVAILABLE)?;
    // Pods that are not of the mesh can start, so a runtime may not be told otherwise.
    fine(plugin.run("STATUS", None, &lenient)?)?;
    plugin.check(&server)?.failed(LATER)?;
    drop(stopped);
    eventually("the daemon answers again", READY, || {
        fine(plugin.run("STATUS", None, &strict)?).map(Some)
    })?;

    // Whoever still exists is kept, and so are all if nobody says who does.
    let before = given(cluster)?;
    let all: BTreeSet<&str> =
        before.iter().filter_map(|kept| kept["container_id"].as_str()).collect();
    ensure!(all.contains(server.container.as_str()) && all.len() > 1, "{all:?}");
    let list = |ids: &BTreeSet<&str>| {
        let each = |id: &&str| json!({"containerID": id, "ifname": "eth0"});
        json!({"cni.dev/valid-attachments": ids.iter().map(each).collect::<Vec<_>>()})
    };
    fine(plugin.run("GC", None, &plugin.conf(&list(&all)))?)?;
    ensure!(given(cluster)? == before, "GC forgot a sandbox that exists");
    plugin.run("GC", None, &plugin.conf(&json!({})))?.failed(INVALID)?;
    ensure!(given(cluster)? == before, "GC without a list forgot sandboxes");
    fine(plugin.check(&server)?)?;
    // The one that is left out goes, and no other.
    let others: BTreeSet<&str> = all.iter().copied().filter(|id| *id != held.container).collect();
    fine(plugin.run("GC", None, &plugin.conf(&list(&others)))?)?;
    let after = given(cluster)?;
    let left: BTreeSet<&str> =
        after.iter().filter_map(|kept| kept["container_id"].as_str()).collect();
    ensure!(left == others, "{left:?} of {all:?}");
    fine(plugin.check(&server)?)
}

fn given(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut kept = kube::given(cluster, 1)?;
    kept.sort_by_key(|kept| kept["container_id"].to_string());
    Ok(kept)
}

fn sandbox(cluster: &Cluster, namespace: &str, name: &str) -> Result<Sandbox> {
    let kept = given(cluster)?;
    let kept = kept.iter().find(|kept| kept["namespace"] == namespace && kept["name"] == name);
    let kept = kept.with_context(|| format!("{namespace}/{name} was not told by ADD"))?;
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let ip = text(&kept["addresses"][0]);
    let script = "for netns in /run/netns/*; do nsenter --net=$netns ip -o addr show dev eth0 \
                  2>/dev/null | grep -q \" $0/\" && echo $netns; done; true";
    let netns = cluster.on_node(1, &["sh", "-c", script, &ip])?;
    let netns = netns.lines().next().with_context(|| format!("no namespace has {ip}"))?.to_owned();
    let (container, uid) = (text(&kept["container_id"]), text(&kept["uid"]));
    Ok(Sandbox { container, uid, namespace: namespace.into(), name: name.into(), ip, netns })
}

/// The plugin as it is installed on the node.
struct Plugin<'a> {
    cluster: &'a Cluster,
    entry: Value,
}

impl<'a> Plugin<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let list: Value = serde_json::from_str(&cluster.on_node(1, &["cat", CONFLIST])?)?;
        let entry = list["plugins"].as_array().and_then(|all| all.last()).context("no plugins")?;
        ensure!(entry["type"] == "fairlead-cni", "{entry}");
        let mut entry = entry.clone();
        (entry["cniVersion"], entry["name"]) = ("1.1.0".into(), list["name"].clone());
        Ok(Self { cluster, entry })
    }

    /// What the plugin reads: its entry as the runtime completes it, and more.
    fn conf(&self, more: &Value) -> Value {
        let mut conf = self.entry.clone();
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        conf
    }

    fn check(&self, sandbox: &Sandbox) -> Result<Outcome> {
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": sandbox.netns}],
            "ips": [{"interface": 0, "address": format!("{}/24", sandbox.ip)}],
        });
        self.run("CHECK", Some(sandbox), &self.conf(&json!({"prevResult": result})))
    }

    fn run(&self, command: &str, sandbox: Option<&Sandbox>, conf: &Value) -> Result<Outcome> {
        let mut inside = self.cluster.command_on_node(1)?;
        inside.arg("env").arg(format!("CNI_COMMAND={command}")).arg("CNI_PATH=/opt/cni/bin");
        if let Some(Sandbox { container, uid, namespace, name, netns, .. }) = sandbox {
            inside.arg(format!("CNI_CONTAINERID={container}")).arg(format!("CNI_NETNS={netns}"));
            inside.arg("CNI_IFNAME=eth0").arg(format!(
                "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_UID={uid}"
            ));
        }
        inside.arg(PLUGIN).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = inside.spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(conf.to_string().as_bytes())?;
        drop(stdin);
        let done = child.wait_with_output()?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        eprintln!("{command} within {took:?}: {} {said}", done.status);
        ensure!(took < BOUND, "{command} took {took:?}");
        Ok(Outcome { fine: done.status.success(), said })
    }
}

/// What the plugin told the runtime.
struct Outcome {
    fine: bool,
    said: String,
}

fn ensure_fine(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.fine && outcome.said.is_empty(), "{}", outcome.said);
    Ok(())
}

impl Outcome {
    fn failed(&self, code: i64) -> Result<()> {
        ensure!(!self.fine, "it succeeded");
        let error: Value = serde_json::from_str(&self.said)?;
        ensure!(error["code"] == code && error["cniVersion"] == "1.1.0", "{error}");
        Ok(())
    }
}

/// The node's daemon, stopped (SIGSTOP) until this is dropped.
struct Stopped<'a> {
    cluster: &'a Cluster,
    pid: String,
}

impl<'a> Stopped<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        // Probes are processes of the same program.
        let script = "for p in /proc/[0-9]*; do \
                      [ \"$(cat $p/comm 2>/dev/null)\" = fairlead-node ] || continue; \
                      tr '\\0' ' ' <$p/cmdline | grep -q ' --controller=' && echo ${p#/proc/}; \
                      done 2>/dev/null; true";
        let pids = cluster.on_node(1, &["sh", "-c", script])?;
        let mut lines = pids.lines();
        let (Some(pid), None) = (lines.next(), lines.next()) else {
            anyhow::bail!("not one daemon: {pids:?}");
        };
        let this = Self { cluster, pid: pid.to_owned() };
        this.signal("STOP")?;
        Ok(this)
    }

    /// By the shell: a program for that is not on every Debian.
    fn signal(&self, name: &str) -> Result<()> {
        let script = format!("kill -{name} {}", self.pid);
        self.cluster.on_node(1, &["sh", "-c", &script]).map(drop)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = self.signal("CONT");
    }
}
