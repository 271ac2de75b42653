//! How a cluster is.

use anyhow::Result;
use serde::Serialize;

use crate::cgroups;
use crate::cluster::Cluster;
use crate::component::Component;

/// How a cluster is.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Credentials of an administrator.
    pub kubeconfig: String,
    /// Whether it has IPv6 beside IPv4.
    pub dual_stack: bool,
    /// Whether the API server says that it is ready.
    pub api_ready: bool,
    /// Memory of all its processes in bytes, shared pages divided among those that share them.
    pub memory: u64,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Its processes.
    pub components: Vec<ComponentStatus>,
}

/// How a node is.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `Ready`, `NotReady`, `down` when its namespaces are gone, `unknown` without API server.
    pub state: String,
    /// Its address inside the cluster.
    pub address: String,
    /// Pods that the API server has for it.
    pub pods: usize,
}

/// How a component is.
#[derive(Clone, Debug, Serialize)]
pub struct ComponentStatus {
    /// Its program.
    pub component: String,
    /// Its node, if it belongs to one.
    pub node: Option<String>,
    /// Its process; `None` when it does not run.
    pub pid: Option<u32>,
    /// File with what it printed.
    pub log: String,
}

impl Status {
    /// How a cluster is now. What cannot be asked is told as such; only a machine without cgroups
    /// is an error.
    ///
    /// # Errors
    /// Cgroups cannot be read.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let record = cluster.record();
        let kubectl = cluster.kubectl();
        let raw = ["get", "--raw", "/readyz", "--request-timeout=2s"];
        let api_ready = kubectl.run(&raw).is_ok_and(|said| said == "ok");
        let ask = |kind: &[&str]| {
            let answer = api_ready.then(|| kubectl.json(kind).ok()).flatten();
            answer.and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
        };
        let known = ask(&["get", "nodes"]);
        let pods = ask(&["get", "pods", "-A"]);
        let node = |number: usize| {
            let name = cluster.node_name(number);
            let object = known.iter().find(|node| node["metadata"]["name"] == name.as_str());
            let conditions = object.and_then(|node| node["status"]["conditions"].as_array());
            let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
            let state = match ready {
                _ if cluster.node_init(number).is_err() => "down",
                Some(condition) if condition["status"] == "True" => "Ready",
                Some(_) => "NotReady",
                None => "unknown",
            };
            let on = |pod: &&serde_json::Value| pod["spec"]["nodeName"] == name.as_str();
            NodeStatus {
                state: state.to_owned(),
                address: crate::network::Plan::node_v4(number),
                pods: pods.iter().filter(on).count(),
                name,
            }
        };
        let component = |component: Component| -> Result<ComponentStatus> {
            Ok(ComponentStatus {
                component: component.program().to_owned(),
                node: component.node().map(|number| cluster.node_name(number)),
                pid: cluster.pids(component)?.first().copied(),
                log: cluster.log(component).display().to_string(),
            })
        };
        Ok(Self {
            name: record.name.clone(),
            kubeconfig: cluster.kubeconfig().display().to_string(),
            dual_stack: record.dual_stack,
            api_ready,
            memory: cgroups::memory(&format!("{}{}", cgroups::PREFIX, record.name))?,
            nodes: (1..=record.nodes).map(node).collect(),
            components: Component::all(record.nodes)
                .into_iter()
                .map(component)
                .collect::<Result<_>>()?,
        })
    }

    /// Whether everything runs and is ready.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.api_ready
            && self.nodes.iter().all(|node| node.state == "Ready")
            && self.components.iter().all(|component| component.pid.is_some())
    }
}
