//! One real node: the daemon's own binary, its kernel programs in a cgroup of their own, and
//! network namespaces as its pods, which it enrols. It runs on the network of this machine, as it
//! does on a node's.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_tests::cgroup::{Cgroup, mount_point};
use fairlead_tests::netns::Netns;
use fairlead_tests::run::Run;
use fairlead_wire::cni::{Request, Response, Sandbox, write_line};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::api::{Api, free_ports};
use crate::metrics::Metrics;
use crate::process::{self, Usage};
use crate::setup::{self, SYSTEM};

/// Its name.
const NODE: &str = "node-real";
/// Name of its daemon's pod.
const DAEMON: &str = "fairlead-node-real";
/// The namespace of the pod that may reach everything.
const WIDE: &str = "wide";
/// How long the daemon may take to start, and to enrol a pod.
const START: Duration = Duration::from_secs(60);
/// Pods that are enrolled at a time.
const AT_ONCE: usize = 8;
/// How long it may take until nothing happens any more.
const SETTLE: Duration = Duration::from_secs(90);
/// A second in which the daemon uses less than this is one in which nothing happens.
const QUIET: f64 = 0.03;
/// So many of them.
const QUIET_SECONDS: u32 = 3;

/// The node; ended and removed with it, its processes first.
pub(crate) struct RealNode {
    daemon: Daemon,
    admin: SocketAddr,
    plugin: PathBuf,
    pods: Vec<Netns>,
    run: Run,
    _cgroup: Cgroup,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl RealNode {
    /// Starts the daemon on a node without pods, and waits until it is ready.
    pub(crate) async fn start(
        binary: &Path,
        api: &Api,
        controller: SocketAddr,
        roots: &str,
    ) -> Result<Self> {
        setup::send_all(api, setup::node_objects(NODE, 0, DAEMON).into()).await?;
        let run = Run::new()?;
        let cgroup = Cgroup::create(&mount_point()?, run.id())?;
        let own = cgroup.path().join("daemon");
        fs::create_dir(&own)?;
        fs::create_dir(cgroup.path().join("pods"))?;
        let file = |name: &str| run.dir().join(name);
        fs::write(file("roots.pem"), roots)?;
        fs::write(file("token"), setup::token(api, DAEMON).await?)?;
        let [port] = free_ports()?;
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let log = fs::File::create(std::env::temp_dir().join("fl-bench-node.log"))?;
        let child = Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&own)
            .arg(binary)
            .args(["--node", NODE, "--root-namespace", SYSTEM])
            .args(["--controller", &format!("https://localhost:{}", controller.port())])
            .args(["--admin", &admin.to_string()])
            .arg("--ca-root")
            .arg(file("roots.pem"))
            .arg("--token-file")
            .arg(file("token"))
            .arg("--state-dir")
            .arg(file("state"))
            .arg("--cni-socket")
            .arg(file("cni.sock"))
            .arg("--handover-socket")
            .arg(file("handover.sock"))
            .arg("--cgroup-root")
            .arg(cgroup.path())
            .arg("--pin-dir")
            .arg(run.pins().join("node"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| binary.display().to_string())?;
        let node = Self {
            daemon: Daemon(child),
            admin,
            plugin: file("cni.sock"),
            pods: Vec::new(),
            run,
            _cgroup: cgroup,
        };
        process::ready(admin, START).await.context("the node daemon, see fl-bench-node.log")?;
        node.settle().await?;
        Ok(node)
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.daemon.0.id()).context("the node daemon")
    }

    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(process::get(self.admin, "/metrics").await?))
    }

    /// Pods, each with a service account of its own, spread over these namespaces; waits until they
    /// are enrolled and have their certificates.
    pub(crate) async fn add_pods(
        &mut self,
        api: &Api,
        namespaces: &[String],
        count: usize,
    ) -> Result<()> {
        let mut sandboxes = Vec::new();
        let first = self.pods.len();
        for (number, namespace) in (first..).zip(namespaces.iter().cycle().take(count)) {
            let netns = Netns::create(&format!("{}-p{number}", self.run.id()))?;
            let path = netns.path().display().to_string();
            self.pods.push(netns);
            sandboxes.push((number, namespace, path));
        }
        let plugin = &self.plugin;
        stream::iter(sandboxes)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |(number, namespace, netns)| async move {
                let sandbox = pod(api, number, namespace, netns).await?;
                enroll(plugin, sandbox).await
            })
            .await?;
        self.settle().await
    }

    /// A pod that may reach every service there is.
    pub(crate) async fn add_wide_pod(&mut self, api: &Api) -> Result<()> {
        api.put(Method::POST, "/api/v1/namespaces", &setup::meshed(WIDE)).await?;
        api.put(Method::POST, &setup::sidecars(WIDE), &setup::sidecar("*/*")).await?;
        self.add_pods(api, &[WIDE.to_owned()], 1).await
    }

    /// Waits until nothing happens any more.
    async fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        let (mut before, mut quiet) = (self.usage()?.cpu_seconds, 0);
        while quiet < QUIET_SECONDS {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.usage()?.cpu_seconds;
            quiet = if now - before < QUIET { quiet + 1 } else { 0 };
            before = now;
            if Instant::now() > deadline {
                bail!("the node daemon does not come to rest");
            }
        }
        Ok(())
    }
}

/// Makes a pod as the API server knows it once it has its addresses.
async fn pod(api: &Api, number: usize, namespace: &str, netns: String) -> Result<Sandbox> {
    let name = format!("real-{number:03}");
    let object = json!({"metadata": {"name": name, "labels": {"app": "real"}},
        "spec": {"nodeName": NODE, "serviceAccountName": name,
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 8080}]}]}});
    let made: Value = api.send(Method::POST, &setup::pods(namespace), &object).await?;
    let uid = made["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let ip = format!("12.0.{}.{}", number >> 8, number & 255);
    let status = json!([
        {"op": "add", "path": "/status/phase", "value": "Running"},
        {"op": "add", "path": "/status/podIP", "value": ip},
        {"op": "add", "path": "/status/podIPs", "value": [{"ip": ip}]},
        {"op": "add", "path": "/status/conditions", "value": [{"type": "Ready", "status": "True"}]},
    ]);
    let path = format!("{}/{name}/status", setup::pods(namespace));
    api.put(Method::PATCH, &path, &status).await?;
    Ok(Sandbox {
        container_id: format!("container-{number}"),
        netns,
        pod_namespace: namespace.to_owned(),
        pod_name: name,
        pod_uid: uid,
        ips: vec![ip.parse()?],
    })
}

/// Tells the daemon of a pod as the CNI plugin does, until it is enrolled.
async fn enroll(plugin: &Path, sandbox: Sandbox) -> Result<()> {
    let line = write_line(&Request::Add(sandbox))?;
    let deadline = Instant::now() + START;
    loop {
        let mut stream = UnixStream::connect(plugin).await.context("the socket of the plugin")?;
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        match serde_json::from_str(&answer)? {
            Response::Enrolled => return Ok(()),
            // The controller may not have told of it yet.
            other if Instant::now() > deadline => bail!("a pod is not enrolled: {other:?}"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
