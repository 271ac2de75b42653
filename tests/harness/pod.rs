//! A pod: a namespace on a node, addresses, and applications in it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;

use crate::client::{Load, Reply, Sent, all_json, last_json};
use crate::manifest::{Families, PodSpec};
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{self, Place, Process, binary};
use crate::shell;
use crate::topology::lock;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// What was asked for; labels and annotations can change.
    pub(crate) spec: Mutex<PodSpec>,
    /// Name.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Number of its node.
    pub node: usize,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    cgroup: PathBuf,
    dir: PathBuf,
    hosts: PathBuf,
}

impl Pod {
    /// Makes a pod on `node`.
    ///
    /// # Errors
    /// The name is taken, or the node is full.
    pub(crate) fn create(node: &Node, id: &str, spec: PodSpec, hosts: PathBuf) -> Result<Self> {
        let k = node.next_pod()?;
        let number = node.number;
        let netns = Netns::create(&format!("{id}-{}-{}", spec.namespace, spec.name))?;
        shell::ip_batch(
            None,
            &format!(
                "link add eth0 netns {} type veth peer name v{k} netns {}\n",
                netns.name(),
                node.netns.name()
            ),
        )?;
        shell::ip_batch(Some(node.netns.name()), &format!("link set v{k} master cni0 up\n"))?;
        let v4 = Ipv4Addr::new(10, 77, u8::try_from(number)?, u8::try_from(k)?);
        let v6 = Ipv6Addr::new(0xfd77, u16::try_from(number)?, 0, 0, 0, 0, 0, k);
        let mut commands = String::from("link set eth0 up\n");
        let mut ips: Vec<IpAddr> = Vec::new();
        if spec.families != Families::V6 {
            ips.push(v4.into());
            commands.push_str(&format!(
                "addr add {v4}/24 dev eth0\nroute add default via 10.77.{number}.1\n"
            ));
        }
        if spec.families != Families::V4 {
            ips.push(v6.into());
            commands.push_str(&format!(
                "addr add {v6}/64 dev eth0 nodad\nroute add default via fd77:{number}::1\n"
            ));
        }
        shell::ip_batch(Some(netns.name()), &commands)?;
        let name = spec.uid.as_ref().map_or_else(|| netns.name().to_owned(), |u| format!("pod{u}"));
        let cgroup = node.cgroup.join("pods").join(name);
        fs::create_dir(&cgroup)?;
        let dir = node.dir.join(&spec.name);
        fs::create_dir_all(&dir)?;
        let name = spec.name.clone();
        Ok(Self { spec: Mutex::new(spec), name, netns, node: number, ips, cgroup, dir, hosts })
    }

    /// Its first address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }

    /// Its address of a family.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn ip_of(&self, v4: bool) -> IpAddr {
        let found = self.ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
        found.unwrap_or_else(|| panic!("{} has no such address", self.name))
    }

    /// Its uid.
    #[must_use]
    pub fn uid(&self) -> String {
        lock(&self.spec).known_uid()
    }

    /// Sets a label, or takes it away.
    pub fn label(&self, key: &str, value: Option<&str>) {
        let mut spec = lock(&self.spec);
        match value {
            Some(value) => spec.labels.insert(key.into(), value.into()),
            None => spec.labels.remove(key),
        };
    }

    /// Says whether the pod is ready.
    pub fn ready(&self, ready: bool) {
        lock(&self.spec).ready = ready;
    }

    /// The cgroup of its processes.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn place(&self) -> Place<'_> {
        Place { netns: &self.netns, cgroup: &self.cgroup }
    }

    /// Starts an application of `fairlead-apps` and waits until it takes connections.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(&self, args: &[&str]) -> Result<Process> {
        let mut process = self.spawn(args)?;
        process.wait_for("ready:", Duration::from_secs(60))?;
        Ok(process)
    }

    /// Starts an application of `fairlead-apps`, without waiting.
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn(&self, args: &[&str]) -> Result<Process> {
        self.spawn_program(&binary("fairlead-apps", "FAIRLEAD_TEST_APPS")?, args)
    }

    /// Starts a stream to `to` that sends a byte ten times a second for a minute, without waiting.
    ///
    /// # Errors
    /// It does not start.
    pub fn trickle(&self, to: &str) -> Result<Process> {
        self.spawn(&["send", to, "x", "--repeat", "600", "--piece", "1", "--pace-ms", "100"])
    }

    /// Starts any program in the pod, without waiting.
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn_program(&self, program: &Path, args: &[&str]) -> Result<Process> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = self.dir.join(format!("app{n}.log"));
        let hosts = self.hosts.display().to_string();
        let env = [("FAIRLEAD_APPS_HOSTS", hosts.as_str())];
        Process::spawn(self.place(), program, args, &env, &log)
    }

    /// Runs an application of `fairlead-apps` to its end; what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than a minute and a half.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let program = binary("fairlead-apps", "FAIRLEAD_TEST_APPS")?;
        self.exec(&program, args)
    }

    /// Runs any program in the pod; what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than a minute and a half.
    pub fn exec(&self, program: &Path, args: &[&str]) -> Result<String> {
        let hosts = self.hosts.display().to_string();
        let env = [("FAIRLEAD_APPS_HOSTS", hosts.as_str())];
        process::run(self.place(), program, args, &env, Duration::from_secs(90))
    }

    /// One HTTP request.
    ///
    /// # Errors
    /// The client cannot be run; a failed request is a reply with status 0.
    pub fn get(&self, url: &str, more: &[&str]) -> Result<Reply> {
        Ok(Reply(last_json(&self.run(&[&["get", url], more].concat())?)?))
    }

    /// Several HTTP requests over one connection.
    ///
    /// # Errors
    /// The client cannot be run.
    pub fn get_many(&self, url: &str, count: u32, more: &[&str]) -> Result<Vec<Reply>> {
        let n = count.to_string();
        let out = self.run(&[&["get", url, "-n", &n], more].concat())?;
        Ok(all_json(&out)?.into_iter().map(Reply).collect())
    }

    /// A raw TCP exchange.
    ///
    /// # Errors
    /// The client cannot be run.
    pub fn send(&self, to: &str, data: &str, more: &[&str]) -> Result<Sent> {
        Ok(Sent(last_json(&self.run(&[&["send", to, data], more].concat())?)?))
    }

    /// A load.
    ///
    /// # Errors
    /// The load generator cannot be run.
    pub fn load(&self, url: &str, more: &[&str]) -> Result<Load> {
        Ok(Load(last_json(&self.run(&[&["load", url], more].concat())?)?))
    }

    /// gRPC calls over one connection.
    ///
    /// # Errors
    /// The client cannot be run or connect.
    pub fn grpc(&self, authority: &str, more: &[&str]) -> Result<Vec<Reply>> {
        let out = self.run(&[&["grpc", authority], more].concat())?;
        Ok(all_json(&out)?.into_iter().map(Reply).collect())
    }
}
