//! What most scenarios begin with: a client on one node, a server on the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{Mesh, Metrics, Pod, PodSpec, Process, ServiceSpec};
use fairlead_wire::cni::{Request, Response, Sandbox, write_line};

/// Host of the service of [`Pair`].
pub(crate) const SERVER: &str = "server.default.svc.cluster.local";

/// A client on node 0, a server on node 1, both enrolled, daemons running.
pub(crate) struct Pair {
    _echo: Process,
    pub(crate) client: Arc<Pod>,
    pub(crate) server: Arc<Pod>,
    pub(crate) mesh: Mesh,
}

/// Arguments of the echo server that all servers of the scenarios run.
pub(crate) fn echo_args<'a>(name: &'a str, version: &'a str) -> Vec<&'a str> {
    vec![
        "echo",
        "--name",
        name,
        "--version",
        version,
        "--http",
        "8080",
        "--tcp",
        "9000",
        "--banner",
        "3306",
        "--raw",
        "8081",
        "--sink",
        "9001",
    ]
}

/// The service of an app: http 80, raw 81, tcp 9000, sink 9001, mysql 3306.
pub(crate) fn service(app: &str) -> ServiceSpec {
    ServiceSpec::new(app)
        .port("http", 80, 8080)
        .port("http-raw", 81, 8081)
        .port("tcp", 9000, 9000)
        .port("tcp-sink", 9001, 9001)
        .port("mysql", 3306, 3306)
}

/// A pair whose server is on node `node`.
pub(crate) fn pair_on(node: usize) -> Result<Pair> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client").label("version", "v1"))?;
    let server = mesh.pod(PodSpec::new("server").on(node).label("version", "v1"))?;
    mesh.service(service("server"));
    mesh.start()?;
    let echo = server.serve(&echo_args("server", "v1"))?;
    Ok(Pair { _echo: echo, client, server, mesh })
}

/// A pair across the wire.
pub(crate) fn pair() -> Result<Pair> {
    pair_on(1)
}

/// Servers v1 and v2 (and so on) of one app across the nodes, behind one service.
pub(crate) struct Versions {
    pub(crate) echoes: Vec<Process>,
    pub(crate) client: Arc<Pod>,
    pub(crate) servers: Vec<Arc<Pod>>,
    pub(crate) mesh: Mesh,
}

/// `count` versions of `server`, and a DestinationRule with a subset for each.
pub(crate) fn versions(count: usize) -> Result<Versions> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client").label("version", "v1"))?;
    let mut servers = Vec::new();
    for i in 1..=count {
        let spec = PodSpec::new(&format!("server-v{i}"))
            .on(i % 2)
            .account("server")
            .label("app", "server")
            .label("version", &format!("v{i}"));
        servers.push(mesh.pod(spec)?);
    }
    mesh.service(service("server"));
    mesh.apply("subsets", &subsets("server", count))?;
    mesh.start()?;
    let mut echoes = Vec::new();
    for (i, server) in servers.iter().enumerate() {
        echoes.push(server.serve(&echo_args(&server.name, &format!("v{}", i + 1)))?);
    }
    Ok(Versions { echoes, client, servers, mesh })
}

/// A DestinationRule with subsets v1…
pub(crate) fn subsets(host: &str, count: usize) -> String {
    let subsets: String =
        (1..=count).map(|i| format!("  - name: v{i}\n    labels: {{version: v{i}}}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: {host}\n  namespace: default\nspec:\n  host: {host}\n  subsets:\n{subsets}"
    )
}

/// A VirtualService of `server` with this `http` list (YAML, indented by two).
pub(crate) fn virtual_service(body: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: server\n  namespace: default\nspec:\n  hosts: [server]\n{body}"
    )
}

/// `n` of `total` is what a share of `p` gives, within four standard deviations.
pub(crate) fn share(n: u64, total: u64, p: f64) -> Result<()> {
    let (n, total) = (n as f64, total as f64);
    let sigma = (total * p * (1.0 - p)).sqrt();
    ensure!((n - total * p).abs() <= 5.0 * sigma, "{n} of {total} is not {p} (sigma {sigma:.1})");
    Ok(())
}

/// Requests were counted: by the source and by the destination, and no more than `sent`.
pub(crate) fn counted_twice(
    mesh: &Mesh,
    before: &Metrics,
    labels: &[(&str, &str)],
    sent: f64,
) -> Result<()> {
    for reporter in ["source", "destination"] {
        let labels = [labels, &[("reporter", reporter)]].concat();
        let seen = mesh.counted(before, "istio_requests_total", &labels, sent)?;
        ensure!(seen == sent, "{reporter} counted {seen} of {sent} requests");
    }
    Ok(())
}

/// Seconds that a long scenario runs: `usual`, or what `cargo xtask soak` says.
pub(crate) fn seconds(usual: u64) -> u64 {
    let told = std::env::var("FAIRLEAD_SOAK_SECONDS").ok();
    told.and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// Does something while every processor is busy with something else.
pub(crate) fn while_busy<T>(work: impl FnOnce() -> T) -> T {
    /// Also where the work panics.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        work()
    })
}

/// A turn among the scenarios that keep all processors busy: two of them side by side would
/// measure each other.
pub(crate) fn heavy() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The sandbox of a pod, as a runtime would tell of it.
pub(crate) fn sandbox(pod: &Pod) -> Sandbox {
    Sandbox {
        container_id: format!("sandbox-of-{}", pod.name),
        netns: pod.netns.path().display().to_string(),
        pod_namespace: "default".into(),
        pod_name: pod.name.clone(),
        pod_uid: pod.uid(),
        ips: pod.ips.clone(),
    }
}

/// Asks the daemon behind `socket` as the CNI plugin does.
pub(crate) fn ask_as_plugin(socket: &Path, request: &Request) -> Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&write_line(request)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
