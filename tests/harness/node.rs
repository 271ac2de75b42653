//! A node: a namespace on the wire, a bridge for its pods, a root for their cgroups.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::daemon::{self, Settings};
use crate::netns::Netns;
use crate::run::Run;
use crate::shell;
use crate::topology::lock;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Root of its cgroups.
    pub cgroup: PathBuf,
    /// Where it keeps its files.
    pub(crate) dir: PathBuf,
    /// Where eBPF objects are pinned.
    pub pins: PathBuf,
    next_pod: Mutex<u16>,
}

impl Node {
    /// Makes a node on the wire, with routes to the pods of the others.
    ///
    /// # Errors
    /// Not root.
    pub(crate) fn create(
        run: &Run,
        wire: &Netns,
        root: &Path,
        number: usize,
        nodes: usize,
    ) -> Result<Self> {
        let name = format!("node{number}");
        let netns = Netns::create(&format!("{}-{name}", run.id()))?;
        for (path, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/fib_multipath_hash_policy", "1"),
            ("net/ipv6/fib_multipath_hash_policy", "1"),
        ] {
            netns.sysctl(path, value)?;
        }
        let ns = netns.name();
        shell::ip_batch(
            None,
            &format!(
                "link add eth0 netns {ns} type veth peer name n{number} netns {}\n",
                wire.name()
            ),
        )?;
        shell::ip_batch(Some(wire.name()), &format!("link set n{number} master br0 up\n"))?;
        let [v4, v6] = node_ips(number);
        // A bridge without an address of its own takes one of its ports' and changes it when a
        // port joins: pods would go on sending to the old one.
        let mut commands = format!(
            "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             link add cni0 address 02:77:00:00:00:01 type bridge mcast_snooping 0\nlink set cni0 up\n\
             addr add 10.77.{number}.1/24 dev cni0\naddr add fd77:{number}::1/64 dev cni0 nodad\n"
        );
        for other in (0..nodes).filter(|o| *o != number) {
            let [v4, v6] = node_ips(other);
            commands.push_str(&format!(
                "route add 10.77.{other}.0/24 via {v4}\nroute add fd77:{other}::/64 via {v6}\n"
            ));
        }
        shell::ip_batch(Some(ns), &commands)?;
        let cgroup = root.join(&name);
        fs::create_dir_all(cgroup.join("daemon"))?;
        fs::create_dir_all(cgroup.join("pods"))?;
        let dir = run.dir().join(&name);
        fs::create_dir_all(dir.join("config"))?;
        Ok(Self {
            number,
            name,
            netns,
            cgroup,
            dir,
            pins: run.pins().join(format!("node{number}")),
            next_pod: Mutex::new(10),
        })
    }

    /// Its configuration directory.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// Its access log.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.dir.join("access.log")
    }

    /// What its daemon prints.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Its addresses.
    #[must_use]
    pub fn ips(&self) -> [IpAddr; 2] {
        node_ips(self.number)
    }

    /// What its daemon is started with.
    #[must_use]
    pub fn settings(&self, ca: &Path) -> Settings {
        Settings {
            node: self.name.clone(),
            config: self.config(),
            ca: ca.to_owned(),
            cgroup: self.cgroup.clone(),
            pins: self.pins.clone(),
            log: self.daemon_log(),
            directories: true,
            extra: Vec::new(),
        }
    }

    /// How many changes of its configuration its daemon has applied.
    ///
    /// # Errors
    /// The daemon cannot be reached.
    pub fn generation(&self) -> Result<u64> {
        let told = daemon::json(&self.netns, "/problems")?;
        told["changesApplied"].as_u64().context("no changesApplied in /problems")
    }

    /// The number of its next pod; the last part of the pod's addresses.
    ///
    /// # Errors
    /// The node is full.
    pub(crate) fn next_pod(&self) -> Result<u16> {
        let mut next = lock(&self.next_pod);
        *next += 1;
        ensure!(*next < 255, "a node holds no more than 244 pods here");
        Ok(*next)
    }
}

/// The addresses of a node on the wire.
pub(crate) fn node_ips(number: usize) -> [IpAddr; 2] {
    let n = u8::try_from(10 + number).unwrap_or(u8::MAX);
    [
        Ipv4Addr::new(192, 168, 77, n).into(),
        Ipv6Addr::new(0xfd77, 0xffff, 0, 0, 0, 0, 0, n.into()).into(),
    ]
}
