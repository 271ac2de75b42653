//! Kubernetes `core/v1.Pod`.

use std::net::IpAddr;

use serde::Deserialize;

use super::Protocol;
use crate::ObjectMeta;
use crate::value::IntOrString;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: PodSpec,
    /// Status.
    pub status: PodStatus,
}

impl Pod {
    /// The pod's addresses: `status.podIPs`, or `status.podIP` where that list is empty.
    /// Validation has checked that they parse; one that does not is left out.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let single = self.status.pod_ips.is_empty().then_some(self.status.pod_ip.as_str());
        let all = self.status.pod_ips.iter().map(|entry| entry.ip.as_str());
        single.into_iter().chain(all).filter_map(|text| text.parse().ok())
    }

    /// The service account, `default` where none is named.
    #[must_use]
    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        }
    }

    /// Whether the condition `Ready` is true. A pod without any condition, as people write one
    /// by hand, counts as ready if it is running or its phase is not given.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.status.conditions.iter().find(|c| c.kind == "Ready") {
            Some(condition) => condition.status == "True",
            None => matches!(self.status.phase, PodPhase::Running | PodPhase::Unknown),
        }
    }
}

/// `PodSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that runs it.
    pub node_name: String,
    /// Its service account; see [`Pod::service_account`].
    pub service_account_name: String,
    /// Whether it lives in the node's own network namespace; such a pod cannot be captured.
    pub host_network: bool,
    /// First label of its DNS name.
    pub hostname: String,
    /// Headless service under which its DNS name is.
    pub subdomain: String,
    /// Containers.
    pub containers: Vec<Container>,
    /// Init containers, restartable ones among them.
    pub init_containers: Vec<Container>,
}

/// `Container`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Declared ports; a service's `targetPort` may name one.
    pub ports: Vec<ContainerPort>,
    /// Asked until the container has started.
    pub startup_probe: Option<Handler>,
    /// Asked for whether it can serve.
    pub readiness_probe: Option<Handler>,
    /// Asked for whether it has to be restarted.
    pub liveness_probe: Option<Handler>,
    /// What is called when it has started and before it ends.
    pub lifecycle: Option<Lifecycle>,
}

impl Container {
    /// The TCP ports at which the kubelet itself asks something of the container. A name is that of
    /// one of its ports.
    pub fn kubelet_ports(&self) -> impl Iterator<Item = u16> + '_ {
        let probes = [&self.startup_probe, &self.readiness_probe, &self.liveness_probe];
        let hooks = self.lifecycle.iter().flat_map(|l| [&l.post_start, &l.pre_stop]);
        let asked = probes.into_iter().chain(hooks).flatten().flat_map(Handler::ports);
        asked.filter_map(|port| match port {
            IntOrString::Int(number) => Some(*number).filter(|port| *port != 0),
            IntOrString::String(name) => {
                let named = self.ports.iter().find(|p| p.name == *name);
                named.map(|p| p.container_port)
            }
        })
    }
}

/// `Lifecycle`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// After the start.
    pub post_start: Option<Handler>,
    /// Before the end.
    pub pre_stop: Option<Handler>,
}

/// `Probe` and `LifecycleHandler`, as far as they reach the pod over the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Handler {
    /// A request.
    pub http_get: Option<HandlerPort>,
    /// A connection.
    pub tcp_socket: Option<HandlerPort>,
    /// A gRPC health check.
    pub grpc: Option<HandlerPort>,
}

impl Handler {
    fn ports(&self) -> impl Iterator<Item = &IntOrString> {
        // One that names another host is not asked of the pod.
        let all = [&self.http_get, &self.tcp_socket, &self.grpc].into_iter().flatten();
        all.filter(|port| port.host.is_empty()).filter_map(|port| port.port.as_ref())
    }
}

/// `HTTPGetAction`, `TCPSocketAction` and `GRPCAction`: where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HandlerPort {
    /// Number or name.
    pub port: Option<IntOrString>,
    /// Another address than the pod's.
    pub host: String,
}

/// `ContainerPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name.
    pub name: String,
    /// Number.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// `PodStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Phase.
    pub phase: PodPhase,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All addresses, at most one per family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// First address of the node.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// All addresses of the node.
    #[serde(rename = "hostIPs")]
    pub host_ips: Vec<HostIp>,
    /// Conditions.
    pub conditions: Vec<PodCondition>,
}

/// `PodPhase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum PodPhase {
    /// Accepted, not all containers run.
    Pending,
    /// Bound to a node, at least one container runs.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one badly.
    Failed,
    /// Not given, or the node does not answer.
    #[default]
    Unknown,
}

/// `PodIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// Address.
    pub ip: String,
}

/// `HostIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostIp {
    /// Address.
    pub ip: String,
}

/// `PodCondition`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// Name, such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}
