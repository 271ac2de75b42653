//! A mesh for a scenario: a wire, nodes on it, pods on the nodes, services, and the configuration
//! directories that the daemons read.
//!
//! Addresses repeat from run to run, because each run has namespaces of its own: nodes are
//! 192.168.77.1x, pods 10.77.<node>.x, cluster addresses 10.96.0.x, and the same for IPv6.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cgroup::{self, Cgroup};
use crate::daemon::{self, Daemon};
use crate::log::{self, Entry};
use crate::manifest::{self, PodSpec, ServiceSpec};
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::node::{Node, node_ips};
use crate::pod::Pod;
use crate::run::Run;
use crate::shell;
use crate::wait::eventually;
use crate::wire::Capture;

/// Label that enrols a namespace.
pub const ENROL: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// How long a saved configuration may take to be in force.
const APPLY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon that lives may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it takes until something is counted or logged, at most.
const TOLD_LIMIT: Duration = Duration::from_secs(20);

/// A mesh. Dropping it removes all of it.
pub struct Mesh {
    // Dropped in this order: processes with their cgroup first, then what they lived in.
    daemons: Mutex<Vec<Option<Daemon>>>,
    state: Mutex<State>,
    nodes: Vec<Arc<Node>>,
    root: Option<Cgroup>,
    wire: Netns,
    run: Run,
    kept: bool,
}

#[derive(Default)]
struct State {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: Vec<Arc<Pod>>,
    gone: Vec<String>,
    services: Vec<(ServiceSpec, Vec<IpAddr>)>,
    mesh_config: String,
    hosts: BTreeMap<String, IpAddr>,
    node_labels: BTreeMap<usize, BTreeMap<String, String>>,
    next_vip: u16,
}

/// Locks; a scenario that panicked elsewhere does not matter here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mesh {
    /// A mesh of so many nodes, with an enrolled namespace `default`, and no daemon yet.
    ///
    /// # Errors
    /// Not root, or the kernel lacks what is needed.
    pub fn new(nodes: usize) -> Result<Self> {
        let run = Run::new()?;
        let id = run.id().to_owned();
        let wire = Netns::create(&format!("{id}-wire"))?;
        shell::ip_batch(
            Some(wire.name()),
            "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n",
        )?;
        let root = Cgroup::create(&cgroup::mount_point()?, &id)?;
        let mut made = Vec::new();
        for number in 0..nodes {
            made.push(Arc::new(Node::create(&run, &wire, root.path(), number, nodes)?));
        }
        let state = State {
            namespaces: BTreeMap::from([
                ("default".to_owned(), BTreeMap::from([(ENROL.0.to_owned(), ENROL.1.to_owned())])),
                ("istio-system".to_owned(), BTreeMap::new()),
            ]),
            next_vip: 10,
            ..State::default()
        };
        Ok(Self {
            daemons: Mutex::new((0..nodes).map(|_| None).collect()),
            state: Mutex::new(state),
            nodes: made,
            root: Some(root),
            wire,
            run,
            kept: false,
        })
    }

    /// Name of the run.
    #[must_use]
    pub fn id(&self) -> &str {
        self.run.id()
    }

    /// Directory of the run.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.run.dir()
    }

    /// Directory of the CA that the nodes share.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.run.dir().join("ca")
    }

    /// A node.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// The wire's namespace: a place that belongs to no node.
    #[must_use]
    pub fn wire(&self) -> &Netns {
        &self.wire
    }

    /// Leaves everything running when dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.run.keep();
    }

    /// Sets a label of a namespace, or takes it away.
    pub fn label_namespace(&self, name: &str, key: &str, value: Option<&str>) {
        let mut state = lock(&self.state);
        let labels = state.namespaces.entry(name.to_owned()).or_default();
        match value {
            Some(value) => labels.insert(key.to_owned(), value.to_owned()),
            None => labels.remove(key),
        };
    }

    /// Sets a label of a node.
    pub fn label_node(&self, number: usize, key: &str, value: &str) {
        let mut state = lock(&self.state);
        let labels = state.node_labels.entry(number).or_default();
        labels.insert(key.to_owned(), value.to_owned());
    }

    /// Enrols a namespace (made where needed), or takes it out of the mesh.
    pub fn enrol(&self, namespace: &str, enrolled: bool) {
        self.label_namespace(namespace, ENROL.0, enrolled.then_some(ENROL.1));
    }

    /// MeshConfig, as YAML; the access log is added.
    pub fn mesh_config(&self, settings: &str) {
        settings.clone_into(&mut lock(&self.state).mesh_config);
    }

    /// Makes a pod. Its namespace must be enrolled or not before; the daemons learn of the pod
    /// with the next [`Mesh::sync`].
    ///
    /// # Errors
    /// The pod cannot be made.
    pub fn pod(&self, spec: PodSpec) -> Result<Arc<Pod>> {
        let node = self.nodes.get(spec.node).context("no such node")?;
        let pod = Arc::new(Pod::create(node, self.run.id(), spec, self.run.dir().join("hosts"))?);
        let mut state = lock(&self.state);
        let namespace = lock(&pod.spec).namespace.clone();
        state.namespaces.entry(namespace).or_default();
        state.pods.push(Arc::clone(&pod));
        Ok(pod)
    }

    /// Forgets a pod: it is no longer part of what the daemons are told.
    pub fn remove_pod(&self, pod: &Pod) {
        lock(&self.state).gone.push(pod.netns.name().to_owned());
    }

    /// Makes a service; its addresses.
    pub fn service(&self, spec: ServiceSpec) -> Vec<IpAddr> {
        let mut state = lock(&self.state);
        let vips: Vec<IpAddr> = if spec.headless {
            Vec::new()
        } else {
            let n = state.next_vip;
            state.next_vip += 1;
            let [high, low] = n.to_be_bytes();
            vec![
                Ipv4Addr::new(10, 96, high, low).into(),
                Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, n).into(),
            ]
        };
        if let Some(first) = vips.first() {
            let (name, ns) = (&spec.name, &spec.namespace);
            for host in
                [name.clone(), format!("{name}.{ns}"), format!("{name}.{ns}.svc.cluster.local")]
            {
                state.hosts.insert(host, *first);
            }
        }
        state.services.push((spec, vips.clone()));
        vips
    }

    /// Lets a name lead to an address in all pods, as a DNS record would.
    pub fn host(&self, name: &str, ip: IpAddr) {
        lock(&self.state).hosts.insert(name.to_owned(), ip);
    }

    /// Lets the first address of a service reach its pods without any mesh, as a cluster's own
    /// service routing would: each node spreads connections over routes to the pods, and the pods
    /// hold the address on their loopback. No packet is rewritten, no netfilter rule is made.
    ///
    /// # Errors
    /// A route cannot be set.
    pub fn route_without_mesh(&self, vip: IpAddr, pods: &[&Pod]) -> Result<()> {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        for pod in pods {
            shell::ip_batch(Some(pod.netns.name()), &format!("addr add {vip} dev lo\n"))?;
        }
        let ip_of = |pod: &Pod| pod.ips.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4()).copied();
        for node in &self.nodes {
            // One hop to the node of a pod, one from there: only that node knows its pods.
            let local: Vec<_> = pods.iter().filter(|p| p.node == node.number).collect();
            let hops = |pods: &[&&Pod]| -> Option<String> {
                let hops: Option<Vec<_>> = pods
                    .iter()
                    .map(|p| Some(format!("nexthop via {} dev cni0", ip_of(p)?)))
                    .collect();
                hops.filter(|h| !h.is_empty()).map(|h| h.join(" "))
            };
            let mut commands = String::new();
            if let Some(hops) = hops(&local) {
                commands.push_str(&format!("route replace {vip} table 77 {hops}\n"));
            }
            let mut all: Vec<String> = Vec::new();
            for pod in pods {
                let target = if pod.node == node.number {
                    ip_of(pod).map(|ip| format!("nexthop via {ip} dev cni0"))
                } else {
                    let peer = node_ips(pod.node);
                    let via = if vip.is_ipv4() { peer[0] } else { peer[1] };
                    Some(format!("nexthop via {via} dev eth0"))
                };
                all.extend(target);
            }
            commands.push_str(&format!("route replace {vip} {}\n", all.join(" ")));
            let mut ip: Vec<&str> = vec!["-n", node.netns.name(), family];
            ip.extend(["rule", "show", "iif", "eth0"]);
            if !shell::run("ip", &ip)?.contains("lookup 77") {
                let rule = [family, "-n", node.netns.name(), "rule", "add", "iif", "eth0"];
                shell::run("ip", &[&rule[..], &["lookup", "77"]].concat())?;
            }
            let batch = commands.lines().map(|l| format!("{l}\n")).collect::<String>();
            for line in batch.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                shell::run("ip", &[&[family, "-n", node.netns.name()], &words[..]].concat())?;
            }
        }
        Ok(())
    }

    /// Writes namespaces, nodes, pods, services and MeshConfig to the configuration directory of
    /// each node, and the hosts file; waits until running daemons have it.
    ///
    /// # Errors
    /// A daemon does not take it.
    pub fn sync(&self) -> Result<()> {
        let topology = self.topology();
        let hosts: String =
            lock(&self.state).hosts.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
        save(&self.run.dir().join("hosts"), &hosts)?;
        let settings = lock(&self.state).mesh_config.clone();
        let own_log = settings.contains("accessLogFile");
        self.write("mesh.yaml", |node| {
            let mut mesh = settings.trim().to_owned();
            if !own_log {
                mesh.push_str(&format!(
                    "\naccessLogFile: {}\naccessLogEncoding: JSON\n",
                    node.access_log().display()
                ));
            }
            manifest::mesh_config(mesh.trim_start())
        })?;
        self.write("topology.yaml", |_| topology.clone())
    }

    /// The topology as the daemons get it.
    #[must_use]
    pub fn topology(&self) -> String {
        let state = lock(&self.state);
        let mut objects = Vec::new();
        for (name, labels) in &state.namespaces {
            objects.push(manifest::namespace(name, labels));
        }
        for node in &self.nodes {
            let labels = state.node_labels.get(&node.number).cloned().unwrap_or_default();
            objects.push(manifest::node(&node.name, &labels, &node_ips(node.number)));
        }
        let mut accounts = std::collections::BTreeSet::new();
        for pod in state.pods.iter().filter(|p| !state.gone.iter().any(|g| g == p.netns.name())) {
            let spec = lock(&pod.spec);
            if accounts.insert((spec.namespace.clone(), spec.service_account.clone())) {
                objects.push(manifest::service_account(&spec.service_account, &spec.namespace));
            }
            let netns = pod.netns.path().display().to_string();
            objects.push(spec.yaml(&self.nodes[pod.node].name, &pod.ips, &netns));
        }
        for (service, vips) in &state.services {
            objects.push(service.yaml(vips));
        }
        objects.join("---\n")
    }

    /// Saves a file of YAML for all nodes and waits until running daemons have taken it.
    ///
    /// # Errors
    /// A daemon does not take it in time.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        self.write(&format!("{name}.yaml"), |_| yaml.to_owned())
    }

    /// Removes a file that was applied.
    ///
    /// # Errors
    /// It was never applied, or a daemon does not notice.
    pub fn delete(&self, name: &str) -> Result<()> {
        let before = self.generations();
        for node in &self.nodes {
            fs::remove_file(node.config().join(format!("{name}.yaml")))?;
        }
        self.wait_applied(&before)
    }

    /// Writes a file of each node and waits until running daemons have taken it.
    fn write(&self, file: &str, text: impl Fn(&Node) -> String) -> Result<()> {
        let mut before = self.generations();
        for node in &self.nodes {
            let (path, text) = (node.config().join(file), text(node));
            if fs::read_to_string(&path).is_ok_and(|old| old == text) {
                before[node.number] = None;
            } else {
                save(&path, &text)?;
            }
        }
        self.wait_applied(&before)
    }

    /// How often each running daemon has loaded its directory.
    fn generations(&self) -> Vec<Option<u64>> {
        let mut daemons = lock(&self.daemons);
        let each = self.nodes.iter().zip(daemons.iter_mut());
        each.map(|(node, daemon)| {
            let process = daemon.as_mut()?.process();
            if !process.alive() {
                return None;
            }
            // One that is held, or does not answer yet, is not waited for.
            let said = eventually("the daemon to say what it has loaded", ANSWER_LIMIT, || {
                // One that ends meanwhile has nothing to say.
                if process.alive() {
                    node.generation().map(|loaded| Some(Some(loaded)))
                } else {
                    Ok(Some(None))
                }
            });
            said.ok().flatten()
        })
        .collect()
    }

    fn wait_applied(&self, before: &[Option<u64>]) -> Result<()> {
        for (node, before) in self.nodes.iter().zip(before) {
            if let Some(before) = before {
                eventually(
                    &format!("{} to load its configuration", node.name),
                    APPLY_LIMIT,
                    || Ok((node.generation()? > *before).then_some(())),
                )?;
                self.wait_enrolled(node)?;
            }
        }
        Ok(())
    }

    /// Waits until each pod of a node is captured or left alone, as its labels ask.
    fn wait_enrolled(&self, node: &Node) -> Result<()> {
        let mut wanted = BTreeMap::new();
        {
            let state = lock(&self.state);
            let here = state.pods.iter().filter(|p| p.node == node.number);
            for pod in here.filter(|p| !state.gone.iter().any(|g| g == p.netns.name())) {
                let spec = lock(&pod.spec);
                let word = manifest::enrolled(&spec.labels, &state.namespaces[&spec.namespace]);
                let word = if word { "captured" } else { "outside" };
                wanted.insert(format!("{}/{}", spec.namespace, spec.name), word);
            }
        }
        eventually(&format!("the pods of {} to be {wanted:?}", node.name), APPLY_LIMIT, || {
            let told = daemon::json(&node.netns, "/capture")?;
            let pods = told["pods"].as_array().context("no pods in /capture")?;
            for (name, word) in &wanted {
                let pod = pods.iter().find(|p| p["pod"] == name.as_str());
                let pod = pod.with_context(|| format!("{name} is not known"))?;
                ensure!(pod["state"] == *word, "{pod}");
            }
            Ok(Some(()))
        })
    }

    /// Writes the configuration, starts the daemons of all nodes and waits until they are ready.
    ///
    /// # Errors
    /// A daemon does not become ready.
    pub fn start(&self) -> Result<()> {
        self.sync()?;
        for node in &self.nodes {
            self.spawn_daemon(node.number)?;
        }
        for node in &self.nodes {
            self.wait_ready(node.number)?;
        }
        Ok(())
    }

    /// Starts the daemon of a node, without waiting.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn spawn_daemon(&self, node: usize) -> Result<()> {
        self.spawn_daemon_with(node, &[])
    }

    /// Starts the daemon of a node with more arguments, without waiting.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn spawn_daemon_with(&self, node: usize, extra: &[&str]) -> Result<()> {
        self.spawn(node, true, extra)
    }

    /// Starts the daemon of a node that gets configuration and certificates elsewhere than from
    /// the directories of the mesh, without waiting.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn spawn_daemon_elsewhere(&self, node: usize, extra: &[&str]) -> Result<()> {
        self.spawn(node, false, extra)
    }

    fn spawn(&self, node: usize, directories: bool, extra: &[&str]) -> Result<()> {
        let node = &self.nodes[node];
        let mut settings = node.settings(&self.ca_dir());
        settings.directories = directories;
        settings.extra = extra.iter().map(|s| (*s).to_owned()).collect();
        let daemon = Daemon::spawn(&settings, &node.netns, &node.cgroup.join("daemon"))?;
        lock(&self.daemons)[node.number] = Some(daemon);
        Ok(())
    }

    /// Waits until the daemon of a node is ready.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn wait_ready(&self, node: usize) -> Result<()> {
        let mut daemons = lock(&self.daemons);
        let daemon = daemons[node].as_mut().context("no daemon was started")?;
        daemon.wait_ready(&self.nodes[node].netns)
    }

    /// The daemon of a node, which is the caller's from now on: it may go on beside the next.
    ///
    /// # Errors
    /// There is none.
    pub fn take_daemon(&self, node: usize) -> Result<Daemon> {
        lock(&self.daemons)[node].take().context("no daemon was started")
    }

    /// Does something with the daemon of a node.
    ///
    /// # Errors
    /// There is none, or `work` fails.
    pub fn daemon<T>(&self, node: usize, work: impl FnOnce(&mut Daemon) -> Result<T>) -> Result<T> {
        work(lock(&self.daemons)[node].as_mut().context("no daemon was started")?)
    }

    /// `kill -9` of the daemon of a node.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_daemon(&self, node: usize) -> Result<()> {
        let mut daemon = lock(&self.daemons)[node].take().context("no daemon was started")?;
        daemon.kill()
    }

    /// SIGTERM to the daemon of a node, and its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_daemon(&self, node: usize) -> Result<()> {
        let mut daemon = lock(&self.daemons)[node].take().context("no daemon was started")?;
        daemon.stop(Duration::from_secs(30))
    }

    /// Begins to capture what crosses the wire.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn capture(&self) -> Result<Capture> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Capture::start(&self.wire, "br0", self.run.dir().join(format!("wire{n}.pcap")))
    }

    /// Metrics of all nodes together.
    ///
    /// # Errors
    /// A daemon cannot be reached.
    pub fn metrics(&self) -> Result<Metrics> {
        let mut all = Metrics::default();
        for node in &self.nodes {
            all = all.with(daemon::metrics(&node.netns)?);
        }
        Ok(all)
    }

    /// The difference of a sum since an earlier scrape, once it is at least `least`; counters may
    /// lag an answer by a moment.
    ///
    /// # Errors
    /// It does not get there; says how far it got.
    pub fn counted(
        &self,
        before: &Metrics,
        name: &str,
        labels: &[(&str, &str)],
        least: f64,
    ) -> Result<f64> {
        let then = before.sum(name, labels);
        eventually(&format!("{name}{labels:?} to rise by {least}"), TOLD_LIMIT, || {
            let rise = self.metrics()?.sum(name, labels) - then;
            ensure!(rise >= least, "rose by {rise} only");
            Ok(Some(rise))
        })
    }

    /// The access log lines of a node.
    #[must_use]
    pub fn log(&self, node: usize) -> Vec<Entry> {
        log::read(&self.nodes[node].access_log())
    }

    /// Waits for an access log line of a node that `wanted` accepts.
    ///
    /// # Errors
    /// There is none; shows the last ones.
    pub fn logged(
        &self,
        node: usize,
        what: &str,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Entry> {
        eventually(&format!("a log line of node {node} with {what}"), TOLD_LIMIT, || {
            Ok(self.log(node).into_iter().rev().find(|e| wanted(e)))
        })
        .with_context(|| {
            let lines = self.log(node);
            let last = lines.iter().rev().take(5).map(|e| e.0.to_string());
            last.collect::<Vec<_>>().join("\n")
        })
    }

    /// What the daemon of a node printed.
    #[must_use]
    pub fn output(&self, node: usize) -> String {
        fs::read_to_string(self.nodes[node].daemon_log()).unwrap_or_default()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.kept {
            // What was kept belongs to `cargo xtask clean` now.
            std::mem::take(&mut *lock(&self.daemons)).into_iter().for_each(std::mem::forget);
            std::mem::forget(self.root.take());
            self.wire.keep();
            self.nodes.iter().for_each(|node| node.netns.keep());
            lock(&self.state).pods.iter().for_each(|pod| pod.netns.keep());
            return;
        }
        if std::thread::panicking() || std::env::var_os("FAIRLEAD_KEEP_LOGS").is_some() {
            for node in &self.nodes {
                let log = fs::read_to_string(node.daemon_log()).unwrap_or_default();
                eprintln!("--- daemon of {} ---\n{}", node.name, daemon::tail(&log));
            }
        }
        lock(&self.daemons).clear();
        self.root = None;
    }
}

/// Writes a file as a careful editor does: beside it, then renamed over it.
fn save(path: &Path, text: &str) -> Result<()> {
    // Not `.yaml`, so that no half-written file is ever read.
    let beside = path.with_extension("saving");
    fs::write(&beside, text)?;
    fs::rename(&beside, path).with_context(|| format!("{}", path.display()))
}
