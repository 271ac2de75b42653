//! Nodes and components of a running cluster: booted, started, killed on purpose, waited for.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cluster::Cluster;
use crate::component::Component;
use crate::namespaces::{self, Place};
use crate::{cgroups, control_plane, network, node, system};

/// How long each part of a start may take, on a machine that does other things beside.
const START_LIMIT: Duration = Duration::from_secs(120);

impl Cluster {
    pub(crate) fn boot_with_images(&self, number: usize, images: &[PathBuf]) -> Result<()> {
        self.boot(number)?;
        images.iter().try_for_each(|image| self.load_into(number, image))
    }

    /// Namespaces, network and containerd of a node.
    fn boot(&self, number: usize) -> Result<()> {
        let name = self.node_name(number);
        let cgroup = self.node_cgroup(number);
        cgroups::create(&cgroup)?;
        cgroups::create(&format!("{cgroup}/init"))?;
        let dir = node::dir(&self.dir, number);
        let log = self.dir.join(format!("logs/{name}.log"));
        let mut args: Vec<String> =
            [&dir, Path::new(&name), self.binaries.dir()].map(|p| p.display().to_string()).into();
        args.extend(node::KEPT.iter().map(|kept| (*kept).to_owned()));
        namespaces::start_node(&cgroup, self.outer()?, node::INIT_SCRIPT, &args, &log)?;
        let init = namespaces::wait_for_init(&cgroup, &log)?;
        // On a pure v2 system only cgroups without children may have processes.
        for pid in cgroups::processes(&cgroup)? {
            for door in cgroups::doors(&format!("{cgroup}/init"))? {
                fs::write(&door, pid.to_string()).with_context(|| door.display().to_string())?;
            }
        }
        network::lay_node(self.plan(), self.record.nodes, number, self.outer()?, init)?;
        self.start(Component::Containerd(number))
    }

    /// Boots a node that was torn down: its disk is as it was, its memory is empty.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot_node(&self, number: usize) -> Result<()> {
        self.check_node(number)?;
        self.boot(number)?;
        // containerd listens before it has read what it kept, and kubelet ends when it is not done
        // yet: it is started again then, as a service manager would.
        system::eventually("the kubelet to stay", START_LIMIT, || {
            self.start(Component::Kubelet(number)).map(Some)
        })?;
        self.start(Component::KubeProxy(number))
    }

    /// Tears a node down at once, with all its processes, pods, namespaces and mounts. The control
    /// plane is not told.
    ///
    /// # Errors
    /// Something resists.
    pub fn stop_node(&self, number: usize) -> Result<()> {
        self.check_node(number)?;
        let cgroup = self.node_cgroup(number);
        cgroups::kill(&cgroup)?;
        cgroups::remove(&cgroup)
    }

    /// Starts a component that does not run, and waits until it listens, or is ready if it is the
    /// API server: others that start before that are refused and end. What it needs has to run:
    /// etcd for the API server, containerd for the kubelet.
    ///
    /// # Errors
    /// It runs already, or ends instead of listening: with the end of its log.
    pub fn start(&self, component: Component) -> Result<()> {
        self.spawn(component)?;
        if component == Component::Apiserver {
            return self.wait_for_api();
        }
        self.wait_for(component, || Ok(self.listens(component)?.then_some(())))
    }

    /// Whether a component listens: seen in the sockets of its network namespace.
    fn listens(&self, component: Component) -> Result<bool> {
        let init = match component.node() {
            Some(number) => self.node_init(number)?,
            None => self.outer()?,
        };
        let Some(port) = component.port() else {
            let socket = format!("/proc/{init}/root/run/containerd/containerd.sock");
            return Ok(std::os::unix::net::UnixStream::connect(socket).is_ok());
        };
        let mut tables = fs::read_to_string(format!("/proc/{init}/net/tcp"))?;
        tables += &fs::read_to_string(format!("/proc/{init}/net/tcp6")).unwrap_or_default();
        // Local address and port in hexadecimal, remote ones, and the state: 0A is LISTEN.
        let port = format!(":{port:04X}");
        Ok(tables.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        }))
    }

    pub(crate) fn spawn(&self, component: Component) -> Result<()> {
        ensure!(self.pids(component)?.is_empty(), "{component} runs already");
        let cgroup = self.component_cgroup(component);
        cgroups::create(&cgroup)?;
        let name = &self.record.name;
        let (place, init, (program, args)) = match component.node() {
            Some(number) => {
                let command = node::command(component, name, number, self.plan());
                (Place::Node, self.node_init(number)?, command)
            }
            None => {
                let args = control_plane::arguments(component, &self.dir, self.plan());
                (Place::Outer, self.outer()?, (self.binaries.path(component.program()), args))
            }
        };
        namespaces::start(&cgroup, place, init, &program, &args, &self.log(component))
    }

    /// Kills a component (SIGKILL) and waits for its end. Pods go on when it is containerd.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, component: Component) -> Result<()> {
        let pids = self.pids(component)?;
        ensure!(!pids.is_empty(), "{component} does not run");
        let opened = pids.iter().map(|pid| {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw).context("no pid")?;
            Ok(pidfd_open(pid, PidfdFlags::empty())?)
        });
        let opened: Vec<OwnedFd> =
            opened.collect::<Result<_>>().with_context(|| format!("finding {component}"))?;
        for process in &opened {
            pidfd_send_signal(process, Signal::KILL)
                .with_context(|| format!("killing {component}"))?;
        }
        // A cgroup is without a process when its last thread begins to end, which still holds its
        // ports; here it has ended.
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        for process in &opened {
            let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))?;
            ensure!(ended == 1, "{component} does not end");
        }
        Ok(())
    }

    /// Kills a component and starts it again.
    ///
    /// # Errors
    /// It did not run, or cannot be started.
    pub fn restart(&self, component: Component) -> Result<()> {
        self.kill(component)?;
        self.start(component)
    }

    /// Processes of a component; usually one.
    ///
    /// # Errors
    /// Cgroups cannot be read.
    pub fn pids(&self, component: Component) -> Result<Vec<u32>> {
        // By name: containers' shims are in the cgroup of containerd, too. The kernel keeps 15
        // bytes of a name.
        let name: String = component.program().chars().take(15).collect();
        let is = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        Ok(cgroups::processes(&self.component_cgroup(component))?.into_iter().filter(is).collect())
    }

    /// Waits for what a component does once it is up; tells the end of its log if it is not.
    fn wait_for<T>(
        &self,
        component: Component,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let result = system::eventually(&component.to_string(), START_LIMIT, || {
            if cgroups::processes(&self.component_cgroup(component))?.is_empty() {
                return Ok(Some(None));
            }
            Ok(attempt()?.map(Some))
        });
        let tail = || {
            let text = fs::read_to_string(self.log(component)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        match result {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!("{component} ended:\n{}", tail()),
            Err(error) => Err(error.context(format!("{component} says:\n{}", tail()))),
        }
    }

    /// Waits until the API server answers and has its first objects.
    ///
    /// # Errors
    /// It ends, or takes too long.
    pub fn wait_for_api(&self) -> Result<()> {
        let address = (self.plan().outer(), network::API_PORT).into();
        self.wait_for(Component::Apiserver, || {
            // kubectl costs a tenth of a second of processor; a connection costs nothing.
            let limit = Duration::from_millis(200);
            if std::net::TcpStream::connect_timeout(&address, limit).is_err() {
                return Ok(None);
            }
            let args = ["get", "--raw", "/readyz", "--request-timeout=2s"];
            Ok((self.kubectl().run(&args)? == "ok").then_some(()))
        })
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    /// They take too long.
    pub fn wait_for_nodes(&self) -> Result<()> {
        let nodes = self.record.nodes;
        let what = format!("{nodes} nodes to be ready");
        system::eventually(&what, START_LIMIT, || {
            for number in 1..=nodes {
                ensure!(
                    !self.pids(Component::Kubelet(number))?.is_empty(),
                    "the kubelet of node {number} has ended: see {}",
                    self.log(Component::Kubelet(number)).display()
                );
            }
            let template =
                "{range .items[*].status.conditions[?(@.type==\"Ready\")]}{.status} {end}";
            let args = ["get", "nodes", "-o", &format!("jsonpath={template}")];
            let ready = self.kubectl().run(&args)?;
            let count = ready.split_whitespace().filter(|status| *status == "True").count();
            ensure!(count == nodes, "{count} of {nodes} nodes are ready");
            Ok(Some(()))
        })
    }

    /// Waits until CoreDNS serves.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_for_dns(&self) -> Result<()> {
        let limit = format!("--timeout={}s", START_LIMIT.as_secs());
        let name = "deployment/coredns";
        self.kubectl().run(&["rollout", "status", "-n", "kube-system", name, &limit]).map(drop)
    }
}
