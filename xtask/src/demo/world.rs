//! The world of the demo: two nodes, an application in the shape of Bookinfo, a visitor, and a
//! pod of a namespace that never joins.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use fairlead_tests::client::{Load, Reply};
use fairlead_tests::{Mesh, Pod, PodSpec, Process, ServiceSpec};

/// Namespace of the application.
pub(super) const NAMESPACE: &str = "bookinfo";

/// Life of certificates in the demo: short, so that one sees them rotate.
pub(super) const CERT_TTL: &str = "20s";

/// All of it.
pub(super) struct World {
    /// Nodes and pods.
    pub(super) mesh: Mesh,
    /// Sends the requests; a pod of the application's namespace.
    pub(super) visitor: Arc<Pod>,
    /// A pod of a namespace that is not in the mesh.
    pub(super) outsider: Arc<Pod>,
    /// The pods of the application.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Their processes.
    pub(super) processes: Vec<Process>,
    /// Files of YAML in force.
    applied: Vec<String>,
}

/// Name, node, service account, port, arguments.
const APPLICATION: &[(&str, usize, &str, &[&str])] = &[
    ("ratingsdb", 1, "ratingsdb", &["ratingsdb"]),
    ("ratings", 1, "ratings", &["ratings", "--db", "ratingsdb:3306"]),
    ("details", 1, "details", &["details"]),
    ("reviews-v1", 0, "reviews", &["reviews", "--reviews-version", "v1", "--pod", "reviews-v1"]),
    ("reviews-v2", 1, "reviews", &["reviews", "--reviews-version", "v2", "--pod", "reviews-v2"]),
    ("reviews-v3", 1, "reviews", &["reviews", "--reviews-version", "v3", "--pod", "reviews-v3"]),
    ("productpage", 0, "productpage", &["productpage"]),
];

impl World {
    /// Makes nodes, pods and services and starts the application and the node daemons. Nothing is
    /// in the mesh yet.
    pub(super) fn build() -> Result<Self> {
        let mesh = Mesh::new(2)?;
        mesh.enrol("default", false);
        mesh.enrol(NAMESPACE, false);
        mesh.mesh_config("trustDomain: cluster.local");
        let mut pods = Vec::new();
        for (name, node, account, _) in APPLICATION {
            let (app, version) = name.split_once('-').unwrap_or((name, "v1"));
            let spec = PodSpec::new(name)
                .on(*node)
                .namespace(NAMESPACE)
                .account(account)
                .label("app", app)
                .label("version", version);
            pods.push(mesh.pod(spec)?);
        }
        let visitor = mesh.pod(PodSpec::new("visitor").namespace(NAMESPACE))?;
        let outsider = mesh.pod(PodSpec::new("outsider").namespace("legacy"))?;
        for (name, port, target, protocol) in [
            ("productpage", 9080, 9080, "http"),
            ("details", 9080, 9080, "http"),
            ("reviews", 9080, 9080, "http"),
            ("ratings", 9080, 9080, "grpc"),
            ("ratingsdb", 3306, 3306, "tcp"),
        ] {
            let spec = ServiceSpec::new(name).namespace(NAMESPACE).port(protocol, port, target);
            let vips = mesh.service(spec);
            let behind: Vec<&Pod> = pods
                .iter()
                .filter(|p| p.name == name || p.name.starts_with(&format!("{name}-v")))
                .map(AsRef::as_ref)
                .collect();
            mesh.route_without_mesh(vips[0], &behind)?;
        }
        mesh.sync()?;
        let mut processes = Vec::new();
        for ((_, _, _, args), pod) in APPLICATION.iter().zip(&pods) {
            processes.push(pod.serve(args)?);
        }
        for node in 0..2 {
            mesh.spawn_daemon_with(node, &["--cert-ttl", CERT_TTL])?;
        }
        for node in 0..2 {
            mesh.wait_ready(node)?;
        }
        Ok(Self { mesh, visitor, outsider, pods, processes, applied: Vec::new() })
    }

    /// A pod of the application.
    pub(super) fn pod(&self, name: &str) -> Result<&Arc<Pod>> {
        self.pods.iter().find(|p| p.name == name).with_context(|| format!("no pod {name}"))
    }

    /// Labels the namespace.
    pub(super) fn join(&self) -> Result<()> {
        self.mesh.enrol(NAMESPACE, true);
        self.mesh.sync()
    }

    /// Addresses of all pods of the namespace.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let pods = self.pods.iter().chain([&self.visitor]);
        pods.flat_map(|pod| pod.ips.clone()).collect()
    }

    /// Puts files of `manifests/demo` in force, instead of those before.
    pub(super) fn apply(&mut self, names: &[&str]) -> Result<()> {
        for old in std::mem::take(&mut self.applied) {
            if !names.contains(&old.as_str()) {
                self.mesh.delete(&old)?;
            }
        }
        for name in names {
            let path = manifests().join(format!("{name}.yaml"));
            let yaml =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            self.mesh.apply(name, &yaml)?;
            self.applied.push((*name).to_owned());
        }
        Ok(())
    }

    /// The page, as `user` sees it.
    pub(super) fn page(&self, user: &str) -> Result<Reply> {
        let header = format!("end-user: {user}");
        self.visitor.get("http://productpage:9080/productpage", &["-H", &header])
    }

    /// The page, many times: so many connections, requests, a second.
    pub(super) fn load(&self, user: &str, more: &[&str]) -> Result<Load> {
        let header = format!("end-user: {user}");
        let args = [&["-H", &header], more].concat();
        self.visitor.load("http://productpage:9080/productpage", &args)
    }

    /// A load that runs beside what happens meanwhile.
    pub(super) fn load_beside(&self, url: &str, more: &[&str]) -> Result<Process> {
        self.visitor.spawn(&[&["load", url], more].concat())
    }
}

/// Where the YAML of the demo is.
pub(super) fn manifests() -> PathBuf {
    crate::workspace::root().join("manifests/demo")
}
