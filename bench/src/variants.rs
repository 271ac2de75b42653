//! What is compared, all of it standing at once so that measurements can take turns: pods without
//! any mesh, enrolled pods of one node and of two, and a pair of Envoys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::{Mesh, Pod, PodSpec, Process, shell};

use crate::envoy::{self, Side};
use crate::serve;

const START_LIMIT: Duration = Duration::from_secs(15);

/// One thing that is compared.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// The variant that its ratios refer to: same distance, nothing in between.
    pub(crate) baseline: &'static str,
    pub(crate) client: std::sync::Arc<Pod>,
    pub(crate) server: std::sync::Arc<Pod>,
    /// Processes of the mesh in between, those on the client's node first.
    pub(crate) proxies: Vec<Vec<u32>>,
}

impl Variant {
    /// Address of a server port.
    pub(crate) fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ip_of(true), port)
    }

    /// All processes in between.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.proxies.concat()
    }
}

/// Everything that stands.
pub(crate) struct Stand {
    pub(crate) variants: Vec<Variant>,
    // Dropped after the variants, processes before the mesh that they live in.
    processes: Vec<Process>,
    mesh: Mesh,
}

impl Stand {
    /// Builds all of it; `envoy` is Envoy's binary, left out where there is none.
    pub(crate) fn build(own: &Path, envoy: Option<&Path>) -> Result<Self> {
        let mesh = Mesh::new(2)?;
        mesh.enrol("mesh", true);
        let pod = |namespace: &str, name: &str, node: usize, wire: Option<&str>| {
            let mut spec = PodSpec::new(name).namespace(namespace).on(node);
            if let Some(wire) = wire {
                spec = spec.annotation("fairlead.io/transport", wire);
            }
            mesh.pod(spec)
        };
        let direct = pod("direct", "client", 0, None)?;
        let direct_near = pod("direct", "near", 0, None)?;
        let direct_far = pod("direct", "far", 1, None)?;
        let meshed = pod("mesh", "client", 0, None)?;
        let near = pod("mesh", "near", 0, None)?;
        let native = pod("mesh", "native", 1, None)?;
        let hbone = pod("mesh", "hbone", 1, Some("hbone"))?;
        for (name, port, protocol) in [
            ("http", serve::HTTP, "http"),
            ("echo", serve::ECHO, "tcp"),
            ("sink", serve::SINK, "tcp"),
        ] {
            // Services give the ports their protocols; the load goes to pod addresses.
            for app in ["near", "native", "hbone"] {
                mesh.service(
                    fairlead_tests::ServiceSpec::new(&format!("{app}-{name}"))
                        .namespace("mesh")
                        .selector(&[("app", app)])
                        .port(&format!("{protocol}-{name}"), port, port),
                );
            }
        }
        mesh.start()?;
        let mut stand = Self { variants: Vec::new(), processes: Vec::new(), mesh };
        for server in [&direct_near, &direct_far, &near, &native, &hbone] {
            stand.serve(own, server)?;
        }
        let daemon = |node| stand.mesh.daemon(node, |d| Ok(d.process().pid()));
        let (first, second) = (daemon(0)?, daemon(1)?);
        let mut add = |name, baseline, client: &_, server: &_, proxies| {
            let (client, server) = (std::sync::Arc::clone(client), std::sync::Arc::clone(server));
            stand.variants.push(Variant { name, baseline, client, server, proxies });
        };
        add("direct, one node", "direct, one node", &direct, &direct_near, vec![vec![], vec![]]);
        add("direct, two nodes", "direct, two nodes", &direct, &direct_far, vec![vec![], vec![]]);
        let both = || vec![vec![first], vec![second]];
        add("Fairlead, one node", "direct, one node", &meshed, &near, vec![vec![first], vec![]]);
        add("Fairlead, native", "direct, two nodes", &meshed, &native, both());
        add("Fairlead, HBONE", "direct, two nodes", &meshed, &hbone, both());
        if let Some(envoy) = envoy {
            stand.add_envoy(own, envoy)?;
        }
        Ok(stand)
    }

    fn serve(&mut self, own: &Path, pod: &Pod) -> Result<()> {
        let mut process = pod.spawn_program(own, &["serve"])?;
        process.wait_for("serving", START_LIMIT)?;
        self.processes.push(process);
        Ok(())
    }

    fn add_envoy(&mut self, own: &Path, binary: &Path) -> Result<()> {
        let dir = self.mesh.dir().join("envoy");
        envoy::prepare(&dir)?;
        let client = self.mesh.pod(PodSpec::new("client").namespace("envoy"))?;
        let server = self.mesh.pod(PodSpec::new("server").namespace("envoy").on(1))?;
        self.mesh.sync()?;
        self.serve(own, &server)?;
        let mut proxies = Vec::new();
        for (pod, side) in [(&client, Side::Client), (&server, Side::Server)] {
            for rule in side.iptables() {
                let mut words = vec!["netns", "exec", pod.netns.name(), "iptables"];
                words.extend(rule.iter().map(String::as_str));
                shell::run("ip", &words)?;
            }
            let config = envoy::config_file(&dir, side).display().to_string();
            let group = envoy::GROUP.to_string();
            let path = binary.display().to_string();
            let mut process = pod.spawn_program(
                Path::new("/usr/bin/setpriv"),
                &[
                    "--regid",
                    &group,
                    "--clear-groups",
                    "--",
                    &path,
                    "-c",
                    &config,
                    "--concurrency",
                    "2",
                    "--disable-hot-restart",
                    "--log-level",
                    "info",
                ],
            )?;
            process
                .wait_for("starting main dispatch loop", START_LIMIT)
                .context("Envoy did not start")?;
            proxies.push(vec![process.pid()]);
            self.processes.push(process);
        }
        self.variants.push(Variant {
            name: "Envoy pair",
            baseline: "direct, two nodes",
            client,
            server,
            proxies,
        });
        Ok(())
    }

    /// Prints the ends of what proxies and servers said, for a run that went wrong.
    pub(crate) fn tell_logs(&self) {
        for process in &self.processes {
            let output = process.output();
            let lines: Vec<&str> = output.lines().rev().take(15).collect();
            for line in lines.iter().rev() {
                eprintln!("  process {}: {line}", process.pid());
            }
        }
    }

    /// Pins the processes of each node to a processor of its own, or sets them free.
    pub(crate) fn pin(&self, pinned: bool) -> Result<()> {
        let own: Vec<u32> = self.processes.iter().map(Process::pid).collect();
        for node in 0..2 {
            let mut pids: Vec<u32> =
                self.variants.iter().flat_map(|v| v.proxies[node].clone()).collect();
            // Servers stand on the second node, except those of the one-node variants.
            if node == 1 {
                pids.extend(&own);
            }
            pids.sort_unstable();
            pids.dedup();
            let cpus = if pinned { node.to_string() } else { "0-1".to_owned() };
            for pid in pids {
                shell::run("taskset", &["-a", "-c", "-p", &cpus, &pid.to_string()])?;
            }
        }
        Ok(())
    }
}

/// Envoy's binary: where `FAIRLEAD_BENCH_ENVOY` says.
pub(crate) fn envoy_binary() -> Option<PathBuf> {
    std::env::var_os("FAIRLEAD_BENCH_ENVOY").map(PathBuf::from).filter(|p| p.is_file())
}
