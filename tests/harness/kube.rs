//! The mesh on a Kubernetes cluster: a cluster of its own, the manifests that users get, images of
//! the workspace's programs, and eyes on nodes and pods.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster::system;
use serde_json::Value;

use crate::cluster::{Cluster, ClusterOptions, archive, image};
use crate::inside::is_first;
use crate::metrics::Metrics;
use crate::wait::eventually;
use crate::wire::Capture;

/// Namespace of the mesh's own pods.
pub const SYSTEM: &str = "fairlead-system";
/// How long pods may take, on a machine that does other things beside.
pub const READY: Duration = Duration::from_secs(120);
/// What the manifests run, and the applications.
const PROGRAMS: [&str; 4] =
    ["fairlead-node", "fairlead-controller", "fairlead-cni", "fairlead-apps"];
/// A node's wire to the others.
const UPLINK: &str = "eth0";

/// A cluster with the mesh on it. Dropping it ends and removes all of it.
#[derive(Debug)]
pub struct KubeMesh {
    cluster: Cluster,
}

impl Deref for KubeMesh {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// The directory of manifests that users get.
#[must_use]
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

impl KubeMesh {
    /// A new cluster with the mesh on it, everything of it ready.
    ///
    /// # Errors
    /// The cluster does not come up, a program is not built, or something does not become ready.
    pub fn up(options: &ClusterOptions) -> Result<Self> {
        let mesh = Self::without_mesh(options)?;
        mesh.install()?;
        Ok(mesh)
    }

    /// A new cluster that has the images of the mesh and nothing else of it.
    ///
    /// # Errors
    /// As [`KubeMesh::up`].
    pub fn without_mesh(options: &ClusterOptions) -> Result<Self> {
        let start = Instant::now();
        // Before a cluster waits for them.
        let archives =
            PROGRAMS.iter().map(|program| archive(program)).collect::<Result<Vec<_>>>()?;
        let cluster = Cluster::up(options)?;
        archives.iter().try_for_each(|archive| cluster.load_image(archive))?;
        eprintln!("cluster and images after {:.1} s", start.elapsed().as_secs_f64());
        Ok(Self { cluster })
    }

    /// Leaves the cluster where it is, for people to look at.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn keep(&mut self) -> Result<()> {
        self.cluster.keep()
    }

    /// Applies the manifests as a user would, and waits until all of it is ready.
    ///
    /// # Errors
    /// Something does not become ready.
    pub fn install(&self) -> Result<()> {
        let start = Instant::now();
        let dir = manifests();
        let all = self.kubectl(&["kustomize", dir.to_str().context("not UTF-8")?])?;
        // The nodes' daemons wait for the controller's certificate, and kubelet waits longer each
        // time that it is not there yet: the controller first.
        let first: Vec<&str> =
            all.split("\n---\n").filter(|text| !text.contains("\nkind: DaemonSet\n")).collect();
        // Definitions and the namespace take a moment until they can be used.
        eventually("the manifests are taken", READY, || {
            self.apply(&first.join("\n---\n")).map(Some)
        })?;
        self.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)?;
        self.apply_kustomization(&dir)?;
        for what in ["daemonset/fairlead-node", "daemonset/fairlead-cni"] {
            self.wait_rollout(SYSTEM, what, READY)?;
        }
        eprintln!("the mesh was ready {:?} after kubectl apply", start.elapsed());
        Ok(())
    }

    /// Makes a namespace with these labels (`a: b, c: d`), and waits until pods can be made in it.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn namespace(&self, name: &str, labels: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        ))?;
        eventually("the default service account", READY, || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", name]).map(Some)
        })
        .map(drop)
    }

    /// Waits until all pods of a namespace are ready.
    ///
    /// # Errors
    /// They are not.
    pub fn ready(&self, namespace: &str) -> Result<()> {
        self.wait(namespace, &["pods", "--all"], "condition=Ready", READY)
    }

    /// Begins to observe a node's wire to the other nodes.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn observe(&self, node: usize) -> Result<Capture> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let netns = PathBuf::from(format!("/proc/{}/ns/net", self.node_init(node)?));
        Capture::inside(&netns, UPLINK, self.dir().join(format!("wire-{node}-{number}.pcap")))
    }

    /// Address of a node (IPv4).
    ///
    /// # Errors
    /// There is no such node.
    pub fn node_ip(&self, node: usize) -> Result<String> {
        let object = self.json(&["get", "node", &self.node_name(node)])?;
        let addresses = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let found = addresses.iter().find(|address| address["type"] == "InternalIP");
        Ok(found.and_then(|a| a["address"].as_str()).context("no InternalIP")?.to_owned())
    }

    /// All addresses of a pod.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn pod_ips(&self, namespace: &str, pod: &str) -> Result<Vec<String>> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        let ips = object["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        Ok(ips.iter().filter_map(|ip| Some(ip["ip"].as_str()?.to_owned())).collect())
    }

    /// How often containers of a pod were restarted, those of initialization included.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn restarts(&self, namespace: &str, pod: &str) -> Result<u64> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        let of = |list: &str| -> u64 {
            let all = object["status"][list].as_array();
            all.into_iter().flatten().filter_map(|c| c["restartCount"].as_u64()).sum()
        };
        Ok(of("containerStatuses") + of("initContainerStatuses"))
    }

    /// Name of the pod of an application of the mesh (`fairlead-node`) on a node.
    ///
    /// # Errors
    /// There is none.
    pub fn pod_on(&self, node: usize, app: &str) -> Result<String> {
        let field = format!("--field-selector=spec.nodeName={}", self.node_name(node));
        let label = format!("app={app}");
        let pods = self.json(&["get", "pods", "-n", SYSTEM, "-l", &label, &field])?;
        let name = pods["items"][0]["metadata"]["name"].as_str();
        Ok(name.with_context(|| format!("no {app} on node {node}"))?.to_owned())
    }

    /// Metrics of a node's daemon.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self, node: usize) -> Result<Metrics> {
        let pod = self.pod_on(node, "fairlead-node")?;
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15020/proxy/metrics");
        Ok(Metrics::parse(&self.kubectl(&["get", "--raw", &path])?))
    }

    /// What a node's daemon printed: its own log and the access log.
    ///
    /// # Errors
    /// There is none.
    pub fn node_log(&self, node: usize) -> Result<String> {
        let pod = self.pod_on(node, "fairlead-node")?;
        self.kubectl(&["logs", "-n", SYSTEM, &pod])
    }

    /// The node that a pod runs on.
    ///
    /// # Errors
    /// It runs on none.
    pub fn node_of(&self, pod: &Value) -> Result<usize> {
        let on = |node: &usize| pod["spec"]["nodeName"] == self.node_name(*node).as_str();
        (1..=self.record().nodes).find(on).context("the pod runs on no node")
    }

    /// The processes of a pod on a node, as this machine counts processes.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn processes_of(&self, node: usize, namespace: &str, pod: &str) -> Result<Vec<u32>> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        self.processes_by(node, &object)
    }

    /// Likewise, by the pod's object.
    pub(crate) fn processes_by(&self, node: usize, pod: &Value) -> Result<Vec<u32>> {
        let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
        let cgroup = self.node_cgroup(node);
        let all = std::fs::read_dir("/proc")?.flatten();
        let own = all.filter(|entry| {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            groups.contains(uid) && groups.contains(&cgroup)
        });
        Ok(own.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect())
    }

    /// One that lasts: the first that was started, which is that of the sandbox.
    ///
    /// # Errors
    /// The pod does not run on this node, or shares the process namespace of its host.
    pub fn process_of(&self, node: usize, namespace: &str, pod: &str) -> Result<u32> {
        let all = self.processes_of(node, namespace, pod)?;
        let lasting = all.into_iter().filter(|pid| is_first(*pid));
        let first = lasting.filter_map(|pid| Some((system::started(pid)?, pid))).min();
        first
            .map(|(_, pid)| pid)
            .with_context(|| format!("{namespace}/{pod} has no process on node {node}"))
    }

    /// Runs a command of this machine in a pod's network namespace; what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn in_netns(
        &self,
        node: usize,
        namespace: &str,
        pod: &str,
        command: &[&str],
    ) -> Result<String> {
        let netns = format!("--net=/proc/{}/ns/net", self.process_of(node, namespace, pod)?);
        let mut inside = std::process::Command::new("nsenter");
        system::output(inside.arg(netns).args(command))
    }

    /// The request header `x-forwarded-client-cert` as the server of a URL saw it: who the client
    /// is. None when the connection did not come through the mesh.
    ///
    /// # Errors
    /// The answer is not 200.
    pub fn identity(&self, namespace: &str, pod: &str, url: &str) -> Result<Option<String>> {
        let reply = self.get(namespace, pod, url, &["--timeout-ms", "5000"])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        Ok(reply.seen("x-forwarded-client-cert"))
    }

    /// Waits until requests come with an identity (or without one); how long it took.
    ///
    /// # Errors
    /// They do not.
    pub fn until_meshed(
        &self,
        namespace: &str,
        pod: &str,
        url: &str,
        meshed: bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        let what = format!("requests from {pod} to {url} are in the mesh: {meshed}");
        eventually(&what, READY, || {
            let identity = self.identity(namespace, pod, url)?;
            ensure!(identity.is_some() == meshed, "{identity:?}");
            Ok(Some(()))
        })?;
        Ok(start.elapsed())
    }

    /// Conditions in an object's status, by type.
    ///
    /// # Errors
    /// There is no such object.
    pub fn condition(&self, namespace: &str, what: &str, kind: &str) -> Result<Value> {
        let object = self.json(&["get", what, "-n", namespace])?;
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default())
    }
}

/// A container of `fairlead-apps` in YAML's flow style, with further fields (`ports: [...]`).
#[must_use]
pub fn container(args: &[&str], more: &str) -> String {
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    let (image, args) = (image("fairlead-apps"), args.join(", "));
    let comma = if more.is_empty() { "" } else { ", " };
    format!("{{name: app, image: {image}, imagePullPolicy: Never, args: [{args}]{comma}{more}}}")
}
