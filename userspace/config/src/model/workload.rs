//! Workloads: the pods of the mesh, local or not, enrolled or not.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_types::{AppProtocol, Labels, SpiffeId, WorkloadId};
use ipnet::IpNet;

use super::Service;

/// A pod, with what telemetry and policy want to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// `<namespace>/<pod>`.
    pub id: WorkloadId,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// The name of the workload that owns the pod (Deployment, StatefulSet…), as Istio derives it
    /// for `source_workload`.
    pub workload_name: Arc<str>,
    /// `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, `app`, workload name.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, `version`, `latest`.
    pub canonical_revision: Arc<str>,
    /// Label `app`, or `unknown`.
    pub app: Arc<str>,
    /// Label `version`, or `unknown`.
    pub version: Arc<str>,
    /// All labels.
    pub labels: Arc<Labels>,
    /// Identity of its service account.
    pub identity: SpiffeId,
    /// All its addresses.
    pub ips: Box<[IpAddr]>,
    /// `spec.nodeName`.
    pub node: Arc<str>,
    /// Whether the pod's traffic is captured.
    pub enrolled: bool,
    /// How an enrolled pod is reached from another node.
    pub wire: PeerWire,
    /// Ports at which its traffic is not captured
    /// (`traffic.sidecar.istio.io/excludeInboundPorts`).
    pub exclude_inbound_ports: Box<[u16]>,
    /// The only ports at which its traffic is captured
    /// (`traffic.sidecar.istio.io/includeInboundPorts`; none with
    /// `ambient.istio.io/bypass-inbound-capture`). `None`: all.
    pub include_inbound_ports: Option<Box<[u16]>>,
}

impl Workload {
    /// Whether nothing of the mesh stands before this port: whoever wants it, from wherever,
    /// reaches the application itself. HBONE comes to a port of its own, which nobody excludes.
    #[must_use]
    pub fn excludes(&self, port: u16) -> bool {
        let included = self.include_inbound_ports.as_ref();
        self.wire != PeerWire::Hbone
            && (self.exclude_inbound_ports.contains(&port)
                || included.is_some_and(|included| !included.contains(&port)))
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerWire {
    /// Not in the mesh: plaintext.
    Plain,
    /// A Fairlead node carries it: the native transport on the app's own port.
    Native,
    /// Istio ambient (ztunnel, waypoint): HBONE on 15008.
    Hbone,
}

/// A port of a workload that a service leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// The application's port.
    pub number: u16,
    /// Protocol of the service port.
    pub protocol: AppProtocol,
    /// The service.
    pub service: Arc<Service>,
    /// Port of the service.
    pub service_port: u16,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Path of its network namespace (annotation `fairlead.io/netns`); `None`: somebody else
    /// knows it (a CNI plugin), and until then the pod cannot be captured.
    pub netns: Option<PathBuf>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`.
    pub exclude_outbound_ports: Box<[u16]>,
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`.
    pub exclude_outbound_cidrs: Box<[IpNet]>,
    /// The only ranges to which its connections are captured
    /// (`traffic.sidecar.istio.io/includeOutboundIPRanges`). `None`: all.
    pub include_outbound_cidrs: Option<Box<[IpNet]>>,
    /// Ports that are captured besides those ranges
    /// (`traffic.sidecar.istio.io/includeOutboundPorts`).
    pub include_outbound_ports: Box<[u16]>,
    /// Ports at which the kubelet of its node reaches the application: those of probes and
    /// lifecycle hooks.
    pub probe_ports: Box<[u16]>,
}
