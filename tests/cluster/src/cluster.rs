//! A cluster: brought up, found again, damaged on purpose, taken down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::binaries::Binaries;
use crate::cgroups;
use crate::component::{CONTROL_PLANE, Component};
use crate::image::{self, Content, Image};
use crate::kubectl::Kubectl;
use crate::namespaces::{self, Place};
use crate::network::{self, Plan};
use crate::state::{self, Record};
use crate::{control_plane, node, system};

/// Image of CoreDNS.
const COREDNS: &str = "fairlead.dev/coredns:1";

/// What kind of cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// How many nodes; none for an API server alone.
    pub nodes: usize,
    /// IPv6 beside IPv4.
    pub dual_stack: bool,
    /// kube-proxy's mode: `nftables` or `iptables`.
    pub proxy_mode: String,
    /// Whether CoreDNS is waited for.
    pub wait_for_dns: bool,
    /// Whether the cluster may be removed once this process has ended (see [`state::is_orphan`]).
    pub owned: bool,
}

impl Options {
    /// Two nodes with IPv4, that stay until told to go.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 2,
            dual_stack: false,
            proxy_mode: "nftables".to_owned(),
            wait_for_dns: true,
            owned: false,
        }
    }
}

/// A running cluster. Dropping it changes nothing: see [`Cluster::down`].
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) record: Record,
    pub(crate) dir: PathBuf,
    pub(crate) binaries: Binaries,
}

impl Cluster {
    /// Makes a cluster and waits until its nodes are ready; says what happens to `say`. A cluster
    /// that does not come up is taken down again, unless `FAIRLEAD_KEEP_CLUSTERS` is set.
    ///
    /// # Errors
    /// Not root, a tool is missing, or a component does not start: with the end of its log.
    pub fn up(options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        let missing = system::missing_packages();
        ensure!(
            missing.is_empty(),
            "missing: {} (as root on Debian, `cargo xtask cluster up` installs them)",
            missing.join(", ")
        );
        let binaries = Binaries::ensure(say)?;
        let images = images(&binaries, say)?;
        let owner = if options.owned { system::identity_of(std::process::id()) } else { None };
        let Options { name, nodes, dual_stack, proxy_mode, .. } = options;
        let record = state::claim(name, *nodes, *dual_stack, proxy_mode, owner)?;
        let cluster = Self { dir: state::dir(name), record, binaries };
        if let Err(error) = cluster.bring_up(options, &images, say) {
            if std::env::var_os("FAIRLEAD_KEEP_CLUSTERS").is_none() {
                Self::down(name)?;
            }
            return Err(error);
        }
        Ok(cluster)
    }

    /// A cluster that is there already.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let record = state::read(name)?;
        let binaries =
            Binaries::find()?.context("the cluster's programs are gone from the cache")?;
        Ok(Self { dir: state::dir(name), record, binaries })
    }

    /// Lets a cluster outlive the process that it belonged to: it stays until told to go.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn keep(&mut self) -> Result<()> {
        state::disown(&mut self.record)
    }

    /// Ends all processes of a cluster and removes all that it had, whatever is left of it.
    /// Whether there was anything.
    ///
    /// # Errors
    /// Something resists.
    pub fn down(name: &str) -> Result<bool> {
        state::check_name(name)?;
        let cgroup = format!("{}{name}", cgroups::PREFIX);
        let link = network::host_link(name);
        let dir = state::dir(name);
        let linked = Path::new("/sys/class/net").join(&link).exists();
        let was = cgroups::unified(&cgroup)?.exists() || dir.exists() || linked;
        cgroups::kill(&cgroup)?;
        cgroups::remove(&cgroup)?;
        if linked {
            // The kernel may be about to remove it by itself, with the namespace of its peer.
            let removed = namespaces::ip(None, &format!("link del {link}\n"));
            if Path::new("/sys/class/net").join(&link).exists() {
                removed?;
            }
        }
        // Mounts of a namespace go with its last process, which the kernel may still be burying.
        system::eventually("removing the cluster's directory", Duration::from_secs(10), || {
            state::remove_dir(&dir).map(Some)
        })?;
        Ok(was)
    }

    fn bring_up(&self, options: &Options, images: &[PathBuf], say: &dyn Fn(&str)) -> Result<()> {
        let (name, nodes) = (&self.record.name, self.record.nodes);
        fs::create_dir_all(self.dir.join("logs"))?;
        say("keys and certificates");
        let pki = control_plane::prepare(&self.dir, name, self.plan())?;
        for number in 1..=nodes {
            let mode = &self.record.proxy_mode;
            node::prepare(&self.dir, name, number, self.plan(), mode, &pki)?;
        }
        say("namespaces, etcd and API server");
        let outer_cgroup = self.cgroup("outer");
        cgroups::create(&outer_cgroup)?;
        let outer = namespaces::start_outer(&outer_cgroup, &self.dir.join("logs/outer.log"))?;
        network::lay_outer(name, self.plan(), nodes, outer)?;
        self.start(Component::Etcd)?;
        self.spawn(Component::Apiserver)?;
        say(&format!("{nodes} nodes with containerd, and their images"));
        std::thread::scope(|scope| {
            let boots: Vec<_> = (1..=nodes)
                .map(|number| scope.spawn(move || self.boot_with_images(number, images)))
                .collect();
            self.wait_for_api()?;
            say("controller-manager, scheduler, CoreDNS");
            self.spawn(Component::ControllerManager)?;
            self.spawn(Component::Scheduler)?;
            if nodes > 0 {
                self.kubectl().apply(include_str!("../files/coredns.yaml"))?;
            }
            for boot in boots {
                boot.join().map_err(|_| anyhow::anyhow!("booting a node panicked"))??;
            }
            anyhow::Ok(())
        })?;
        say("kubelets and kube-proxies; waiting for the nodes to be ready");
        for number in 1..=nodes {
            self.spawn(Component::Kubelet(number))?;
            self.spawn(Component::KubeProxy(number))?;
        }
        self.wait_for_nodes()?;
        for number in 1..=nodes {
            self.tell_pod_ranges(number)?;
        }
        if options.wait_for_dns && nodes > 0 {
            say("waiting for CoreDNS");
            self.wait_for_dns()?;
        }
        Ok(())
    }

    /// Puts the ranges of a node's pods into its object, as the controller that allocates them does
    /// elsewhere.
    fn tell_pod_ranges(&self, number: usize) -> Result<()> {
        let ranges = self.plan().pods_of(number);
        let spec = json!({"spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}}).to_string();
        let name = self.node_name(number);
        self.kubectl().run(&["patch", "node", &name, "--type=merge", "-p", &spec]).map(drop)
    }

    /// Imports images (archives as of `docker save`) into all nodes.
    ///
    /// # Errors
    /// A node's containerd does not take it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            let loads: Vec<_> = (1..=self.record.nodes)
                .map(|number| scope.spawn(move || self.load_into(number, archive)))
                .collect();
            loads.into_iter().try_for_each(|load| {
                load.join().map_err(|_| anyhow::anyhow!("loading an image panicked"))?
            })
        })
    }

    pub(crate) fn load_into(&self, number: usize, archive: &Path) -> Result<()> {
        let file = fs::File::open(archive).with_context(|| archive.display().to_string())?;
        let mut command = self.node_command(number)?;
        command.args(["ctr", "-n", "k8s.io", "images", "import", "--no-unpack=false", "-"]);
        let done = command.stdin(file).output()?;
        if !done.status.success() {
            bail!(
                "importing {} into {}: {}: {}",
                archive.display(),
                self.node_name(number),
                done.status,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(())
    }

    /// A command that runs what is added to it inside a node, as its root would.
    ///
    /// # Errors
    /// The node does not run.
    pub fn node_command(&self, number: usize) -> Result<Command> {
        Ok(namespaces::visiting(Place::Node, self.node_init(number)?))
    }

    /// A command that runs what is added to it beside the control plane.
    ///
    /// # Errors
    /// The cluster does not run.
    pub fn outer_command(&self) -> Result<Command> {
        Ok(namespaces::visiting(Place::Outer, self.outer()?))
    }

    /// The first process of a node, whose namespaces are the node's.
    ///
    /// # Errors
    /// The node does not run.
    pub fn node_init(&self, number: usize) -> Result<u32> {
        self.check_node(number)?;
        let cgroup = self.node_cgroup(number);
        let init = match namespaces::init_of(&format!("{cgroup}/init"))? {
            Some(init) => Some(init),
            None => namespaces::init_of(&cgroup)?,
        };
        init.with_context(|| format!("node {} does not run", self.node_name(number)))
    }

    pub(crate) fn outer(&self) -> Result<u32> {
        let init = namespaces::init_of(&self.cgroup("outer"))?;
        init.with_context(|| format!("cluster {} does not run", self.record.name))
    }

    pub(crate) fn check_node(&self, number: usize) -> Result<()> {
        ensure!((1..=self.record.nodes).contains(&number), "there is no node {number}");
        Ok(())
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan { dual_stack: self.record.dual_stack, wire: self.record.wire }
    }

    pub(crate) fn cgroup(&self, below: &str) -> String {
        format!("{}{}/{below}", cgroups::PREFIX, self.record.name)
    }

    /// A node's cgroup, relative to the root of every hierarchy. Its components are below
    /// `system`, its pods below `kubepods`.
    #[must_use]
    pub fn node_cgroup(&self, number: usize) -> String {
        self.cgroup(&self.node_name(number))
    }

    pub(crate) fn component_cgroup(&self, component: Component) -> String {
        let program = component.program();
        match component.node() {
            Some(number) => format!("{}/system/{program}", self.node_cgroup(number)),
            None => self.cgroup(&format!("{CONTROL_PLANE}/{program}")),
        }
    }

    /// Name of a node, as the API server knows it.
    #[must_use]
    pub fn node_name(&self, number: usize) -> String {
        node::name(&self.record.name, number)
    }

    /// What is remembered of the cluster.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Credentials of an administrator, for use on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// kubectl with them.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.binaries.path("kubectl"), self.kubeconfig())
    }

    /// File with what a component printed.
    #[must_use]
    pub fn log(&self, component: Component) -> PathBuf {
        let program = component.program();
        let file = match component.node() {
            Some(number) => format!("{}-{program}.log", self.node_name(number)),
            None => format!("{program}.log"),
        };
        self.dir.join("logs").join(file)
    }
}

/// Images that every cluster needs, as archives in the cache.
fn images(binaries: &Binaries, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>> {
    // Scenarios start clusters side by side, also the first ones.
    let lock = fs::File::create(binaries.dir().join("lock"))?;
    lock.lock()?;
    let pause = binaries.dir().join("pause.tar");
    if !pause.is_file() {
        image::pause()?.write(&pause)?;
    }
    let coredns = binaries.dir().join("coredns.tar");
    if !coredns.is_file() {
        say("an image of CoreDNS");
        let program = Content::File(binaries.path("coredns"));
        Image::program(COREDNS, "/coredns", program).write(&coredns)?;
    }
    Ok(vec![pause, coredns])
}

/// Takes down what processes left that ended without doing so; with `all`, every cluster. The
/// names.
///
/// # Errors
/// Something resists.
pub fn clean(all: bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in state::list()? {
        // Nobody makes one of that name meanwhile.
        let _lock = state::lock()?;
        if (all || state::is_orphan(&name)) && Cluster::down(&name)? {
            removed.push(name);
        }
    }
    Ok(removed)
}
