//! A Kubernetes cluster for a scenario: made of its own, with images of the workspace's programs,
//! and gone when it is dropped.

use std::io::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_cluster::package::{REGISTRY, VERSION, image_name, package};
use fairlead_cluster::system;
pub use fairlead_cluster::{Component, Status};
use serde_json::Value;

use crate::client::Reply;
use crate::process::binary;
use crate::wait::eventually;

/// What kind of cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    nodes: usize,
    dual_stack: bool,
    wait_for_dns: bool,
    proxy_mode: &'static str,
}

impl Default for ClusterOptions {
    /// Two nodes with IPv4 and CoreDNS.
    fn default() -> Self {
        Self { nodes: 2, dual_stack: false, wait_for_dns: true, proxy_mode: "nftables" }
    }
}

impl ClusterOptions {
    /// So many nodes; none for an API server alone, which is there in half the time.
    #[must_use]
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// IPv6 beside IPv4.
    #[must_use]
    pub fn dual_stack(self) -> Self {
        Self { dual_stack: true, ..self }
    }

    /// Does not wait until names are resolved.
    #[must_use]
    pub fn without_dns(self) -> Self {
        Self { wait_for_dns: false, ..self }
    }

    /// Mode of kube-proxy: `nftables` or `iptables`.
    #[must_use]
    pub fn proxy_mode(self, proxy_mode: &'static str) -> Self {
        Self { proxy_mode, ..self }
    }
}

/// The applications, in their image.
pub(crate) const APPS: &str = "/usr/local/bin/fairlead-apps";

/// A cluster. Dropping it ends and removes all of it. What is not here is at
/// [`fairlead_cluster::Cluster`], which this stands for: killing and restarting components, tearing
/// nodes down and booting them, logs.
#[derive(Debug)]
pub struct Cluster {
    inner: fairlead_cluster::Cluster,
}

impl Deref for Cluster {
    type Target = fairlead_cluster::Cluster;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.record().owner.is_none() {
            return;
        }
        // Clusters that stay take the machine from the scenarios that follow: only when asked for.
        if std::env::var_os("FAIRLEAD_KEEP_CLUSTERS").is_some() {
            eprintln!("kept: cluster {} ({})", self.record().name, self.dir().display());
            return;
        }
        if std::env::var_os("FAIRLEAD_KEEP_LOGS").is_some() {
            let to = std::env::temp_dir().join("fairlead-logs").join(&self.record().name);
            match copy_files(&self.dir().join("logs"), &to) {
                Ok(()) => eprintln!("logs of the cluster: {}", to.display()),
                Err(error) => eprintln!("logs of the cluster: {error}"),
            }
        }
        if let Err(error) = fairlead_cluster::Cluster::down(&self.record().name) {
            eprintln!("cluster {}: {error:#}", self.record().name);
        }
    }
}

/// Copies the files of a directory.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

impl Cluster {
    /// Makes a cluster with a name that no other has, and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn up(options: &ClusterOptions) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{:x}-{number}", std::process::id());
        let options = fairlead_cluster::Options {
            nodes: options.nodes,
            dual_stack: options.dual_stack,
            wait_for_dns: options.wait_for_dns,
            proxy_mode: options.proxy_mode.to_owned(),
            owned: true,
            ..fairlead_cluster::Options::new(&name)
        };
        let inner = fairlead_cluster::Cluster::up(&options, &|what| eprintln!("{name}: {what}"))?;
        Ok(Self { inner })
    }

    /// Leaves it where it is, for people to look at: neither the end of this value nor that of this
    /// process removes it.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn keep(&mut self) -> Result<()> {
        self.inner.keep()
    }

    /// Packages programs of the workspace (`fairlead-apps`, `fairlead-node`…) and imports them into
    /// all nodes, as the images that [`image`] names. Another program takes the place of an
    /// image of the same name for containers that start from then on.
    ///
    /// # Errors
    /// A program is not built.
    pub fn load_programs(&self, programs: &[&str]) -> Result<()> {
        programs.iter().try_for_each(|program| self.load_image(&archive(program)?))
    }

    /// Runs kubectl with a text as its input; whether it succeeded, and all that it said.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<(bool, String)> {
        let mut child = self
            .inner
            .kubectl()
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Runs kubectl; what it printed.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.inner.kubectl().run(args)
    }

    /// Objects as JSON, from such as `["get", "pods", "-n", "x"]`.
    ///
    /// # Errors
    /// There is no such thing.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        self.inner.kubectl().json(args)
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.inner.kubectl().apply(yaml).map(drop)
    }

    /// Applies a kustomization (`kubectl apply -k`).
    ///
    /// # Errors
    /// The server does not take it.
    pub fn apply_kustomization(&self, dir: &Path) -> Result<()> {
        let dir = dir.to_str().context("not UTF-8")?;
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", dir]).map(drop)
    }

    /// Deletes what YAML names.
    ///
    /// # Errors
    /// The server does not do it.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.inner.kubectl().delete(yaml).map(drop)
    }

    /// Waits with `kubectl wait` until `what` (such as `pod/x`, or `pods` and `--all`) meets
    /// `condition` (such as `condition=Ready`).
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait(
        &self,
        namespace: &str,
        what: &[&str],
        condition: &str,
        limit: Duration,
    ) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), limit.as_secs().max(1));
        let timeout = format!("--timeout={timeout}s");
        let args = [&["wait", "-n", namespace, &condition, &timeout], what].concat();
        // What does not exist yet is an error for kubectl.
        eventually(&format!("{condition} of {what:?}"), limit, || self.kubectl(&args).map(Some))
            .map(drop)
    }

    /// Waits until a Deployment, DaemonSet or StatefulSet (such as `daemonset/x`) is rolled out.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub fn wait_rollout(&self, namespace: &str, what: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs().max(1));
        let args = ["rollout", "status", "-n", namespace, what, &timeout];
        eventually(&format!("rollout of {what}"), limit, || self.kubectl(&args).map(Some)).map(drop)
    }

    /// Runs a command in a pod (`pod`, or `pod` and container as `pod -c name`); its output.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", "-n", namespace];
        args.extend(pod.split(' '));
        args.push("--");
        args.extend(command);
        self.kubectl(&args)
    }

    /// One HTTP request from a pod of the image of `fairlead-apps`.
    ///
    /// # Errors
    /// The client cannot be run; a request that fails is told in the reply.
    pub fn get(&self, namespace: &str, pod: &str, url: &str, more: &[&str]) -> Result<Reply> {
        let told = self.app(namespace, pod, &[&["get", url], more].concat())?;
        Ok(Reply(serde_json::from_str(told.trim()).with_context(|| told.clone())?))
    }

    /// What `fairlead-apps` prints in a pod, which is something.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn app(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<String> {
        let command = [&[APPS], args].concat();
        for _ in 0..3 {
            let told = self.exec(namespace, pod, &command)?;
            // `kubectl exec` loses what was printed now and then.
            if !told.trim().is_empty() {
                return Ok(told);
            }
        }
        bail!("{args:?} in {namespace}/{pod}: no word")
    }

    /// Address of a pod.
    ///
    /// # Errors
    /// It has none yet.
    pub fn pod_ip(&self, namespace: &str, pod: &str) -> Result<String> {
        let object = self.json(&["get", "pod", "-n", namespace, pod])?;
        let ip = object["status"]["podIP"].as_str().unwrap_or_default();
        ensure!(!ip.is_empty(), "pod {pod} has no address");
        Ok(ip.to_owned())
    }

    /// Runs a command on a node, as its root; its output.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn on_node(&self, node: usize, command: &[&str]) -> Result<String> {
        system::output(self.node_command(node)?.args(command))
    }

    /// A command inside a node, for callers that want its input and output themselves.
    ///
    /// # Errors
    /// The node does not run.
    pub fn command_on_node(&self, node: usize) -> Result<Command> {
        self.node_command(node)
    }
}

/// Name of the image of a program of the workspace.
#[must_use]
pub fn image(program: &str) -> String {
    image_name(program, REGISTRY, VERSION)
}

/// The archive with the image of a program of the workspace: made beside the program, if it is
/// not there or the program has changed.
///
/// # Errors
/// The program is not built.
pub fn archive(program: &str) -> Result<PathBuf> {
    let variable = match program {
        "fairlead" => "FAIRLEAD_TEST_CLI".to_owned(),
        other => format!("FAIRLEAD_TEST_{}", other.trim_start_matches("fairlead-").to_uppercase()),
    };
    let path = binary(program, &variable)?;
    let dir = path.parent().context("no directory")?.join("images");
    std::fs::create_dir_all(&dir)?;
    // Scenarios run side by side, and want the same archives.
    let lock = std::fs::File::create(dir.join(format!("{program}.lock")))?;
    lock.lock()?;
    Ok(package(&path, &image(program), &dir.join(format!("{program}.tar")))?.archive)
}

/// A pod of `fairlead-apps` with these arguments, on `node`, labelled `app: <name>`.
#[must_use]
pub fn app_pod(name: &str, namespace: &str, node: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec:\n\
         \x20 nodeName: {node}\n\
         \x20 terminationGracePeriodSeconds: 0\n\
         \x20 containers:\n\
         \x20 - name: app\n\
         \x20   image: {}\n\
         \x20   imagePullPolicy: Never\n\
         \x20   args: [{}]\n\
         ---\n",
        image("fairlead-apps"),
        args.join(", ")
    )
}
