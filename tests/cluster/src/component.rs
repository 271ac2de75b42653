//! The processes that make up a cluster.

use std::fmt;

/// One of them; nodes are counted from 1, as in their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// The store behind the API server.
    Etcd,
    /// The API server.
    Apiserver,
    /// The controllers of Deployments, endpoints, service accounts and so on.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The container runtime of a node.
    Containerd(usize),
    /// The kubelet of a node.
    Kubelet(usize),
    /// kube-proxy of a node.
    KubeProxy(usize),
}

/// The cgroup of a cluster's control plane, below the cluster's.
pub(crate) const CONTROL_PLANE: &str = "control-plane";

impl Component {
    /// Those of the control plane, in the order in which they start.
    pub const CONTROL_PLANE: [Self; 4] =
        [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler];

    /// Those of a node, in the order in which they start.
    #[must_use]
    pub const fn of_node(node: usize) -> [Self; 3] {
        [Self::Containerd(node), Self::Kubelet(node), Self::KubeProxy(node)]
    }

    /// All of a cluster with so many nodes.
    #[must_use]
    pub fn all(nodes: usize) -> Vec<Self> {
        let of_nodes = (1..=nodes).flat_map(Self::of_node);
        Self::CONTROL_PLANE.into_iter().chain(of_nodes).collect()
    }

    /// The component with this program, on `node` if it is one that each node has.
    #[must_use]
    pub fn named(program: &str, node: usize) -> Option<Self> {
        let all = Self::CONTROL_PLANE.into_iter().chain(Self::of_node(node));
        all.into_iter().find(|c| c.program() == program || c.program() == format!("kube-{program}"))
    }

    /// Name of its program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd(_) => "containerd",
            Self::Kubelet(_) => "kubelet",
            Self::KubeProxy(_) => "kube-proxy",
        }
    }

    /// A port on which it listens once it works; containerd has a socket in the file system.
    pub(crate) const fn port(self) -> Option<u16> {
        match self {
            Self::Etcd => Some(2379),
            Self::Apiserver => Some(crate::network::API_PORT),
            Self::ControllerManager => Some(10257),
            Self::Scheduler => Some(10259),
            Self::Containerd(_) => None,
            Self::Kubelet(_) => Some(10250),
            Self::KubeProxy(_) => Some(10256),
        }
    }

    /// The node that it runs on.
    #[must_use]
    pub const fn node(self) -> Option<usize> {
        match self {
            Self::Etcd | Self::Apiserver | Self::ControllerManager | Self::Scheduler => None,
            Self::Containerd(node) | Self::Kubelet(node) | Self::KubeProxy(node) => Some(node),
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node() {
            Some(node) => write!(f, "{} of node {node}", self.program()),
            None => f.write_str(self.program()),
        }
    }
}
