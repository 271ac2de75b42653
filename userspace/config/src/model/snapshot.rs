//! The snapshot and its lookups. Lookups cost a hash or two and never allocate.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairlead_policy::route::ClusterId;
use fairlead_types::{OriginalDst, WorkloadId};
use foldhash::fast::RandomState;

use super::authority::{Resolved, host_of};
use super::{
    Cluster, Inbound, LocalPod, MeshSettings, ServiceKey, ServicePort, ServiceRef, TargetPort,
    VirtualHost, Workload,
};

/// A persistent hash map: cloning it costs one reference count.
pub type Map<K, V> = imbl::GenericHashMap<K, V, RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// Everything that one node needs, compiled. Cloning it costs a few reference counts; maps are
/// persistent, so that a change copies a path, not a map.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change.
    pub version: u64,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshSettings>,
    /// Pods of this node, enrolled or not.
    pub local: Map<WorkloadId, Arc<LocalPod>>,
    /// Local enrolled pods that are captured only to be refused, with the reason.
    pub refused: Map<WorkloadId, Arc<str>>,
    /// The inbound side of each local enrolled pod.
    pub inbound: Map<WorkloadId, Arc<Inbound>>,
    /// What a local pod is to rules that choose clients by labels (DestinationRule
    /// `workloadSelector`), where any does; ask through [`Snapshot::client`].
    pub clients: Map<WorkloadId, Arc<str>>,
    /// Workloads by each of their addresses; pods on the host's network are not in it, for their
    /// address is the node's.
    pub workloads: Map<IpAddr, Arc<Workload>>,
    /// The ports of each workload that services lead to, ordered by number; of one number, the
    /// headless service first, then by name.
    pub targets: Map<WorkloadId, Arc<[TargetPort]>>,
    /// Service ports by cluster IP and port.
    pub vips: Map<SocketAddr, Arc<ServicePort>>,
    /// The ports of each service, ordered by number.
    pub services: Map<ServiceKey, Arc<[Arc<ServicePort>]>>,
    /// VirtualService hosts that are no service: exact hosts, and wildcards by what follows the
    /// `*` (`.example.com`; empty for `*` alone).
    pub virtual_hosts: VirtualHosts,
    /// Clusters by their number.
    pub clusters: Map<ClusterId, Arc<Cluster>>,
}

/// The two indices of [`Snapshot::virtual_hosts`].
#[derive(Clone, Debug, Default)]
pub struct VirtualHosts {
    /// By host.
    pub exact: Map<Arc<str>, Arc<VirtualHost>>,
    /// By the text after `*`.
    pub wildcard: Map<Arc<str>, Arc<VirtualHost>>,
}

/// What is at an address that an application asked for.
#[derive(Clone, Debug)]
pub enum Outbound {
    /// A port of a service, by its cluster IP.
    Service(Arc<ServicePort>),
    /// A pod, by its own address (headless services too): it gets the connection whatever routes
    /// there are. [`Snapshot::target_port`] says what is known of the port.
    Workload(Arc<Workload>),
    /// Nothing that the mesh knows.
    Unknown,
}

/// What the authority of an HTTP request names.
#[derive(Clone, Copy, Debug)]
pub enum AuthorityTarget<'a> {
    /// A port of a service.
    Service(&'a Arc<ServicePort>),
    /// A host that VirtualServices define without there being a service of that name.
    VirtualHost(&'a Arc<VirtualHost>),
}

impl Snapshot {
    /// The name under which [`ServicePort::routes`] and [`VirtualHost::http`] know a local pod:
    /// that of its namespace, unless rules choose it by its labels.
    #[must_use]
    pub fn client<'a>(&'a self, workload: &'a Workload) -> &'a str {
        if self.clients.is_empty() {
            return &workload.namespace;
        }
        self.clients.get(&workload.id).unwrap_or(&workload.namespace)
    }

    /// What is at `dst`.
    #[must_use]
    pub fn outbound(&self, dst: OriginalDst) -> Outbound {
        if let Some(port) = self.vips.get(&dst.0) {
            return Outbound::Service(Arc::clone(port));
        }
        match self.workloads.get(&dst.ip()) {
            Some(workload) => Outbound::Workload(Arc::clone(workload)),
            None => Outbound::Unknown,
        }
    }

    /// A cluster by its number; `None` when its service or subset is gone.
    #[must_use]
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(&id)
    }

    /// The inbound side of a local enrolled pod, by one of its addresses.
    #[must_use]
    pub fn inbound_at(&self, ip: IpAddr) -> Option<&Arc<Inbound>> {
        self.inbound.get(&self.workloads.get(&ip)?.id)
    }

    /// What is known of a port of a workload: the first service that leads there.
    #[must_use]
    pub fn target_port(&self, workload: &WorkloadId, port: u16) -> Option<&TargetPort> {
        let ports = self.targets.get(workload)?;
        ports.get(ports.partition_point(|p| p.number < port)).filter(|p| p.number == port)
    }

    /// The ports of a service.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<[Arc<ServicePort>]>> {
        self.services.get(&ServiceRef { namespace, name })
    }

    /// One port of a service.
    #[must_use]
    pub fn service_port(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Option<&Arc<ServicePort>> {
        let ports = self.service(namespace, name)?;
        ports.binary_search_by_key(&port, |p| p.number).ok().map(|found| &ports[found])
    }

    /// What the authority of a request names, as seen from a source in `source_namespace` whose
    /// connection went to port `port`: a service in each form that a cluster's DNS search path
    /// allows (`reviews`, `reviews.default`, `reviews.default.svc`, the full name), else the
    /// VirtualService host that matches it most specifically. Upper case and a trailing dot do
    /// not matter; a port in the authority does not either (Istio ignores it for mesh traffic).
    #[must_use]
    pub fn by_authority(
        &self,
        authority: &str,
        source_namespace: &str,
        port: u16,
    ) -> Option<AuthorityTarget<'_>> {
        let resolved = Resolved::new(host_of(authority)?)?;
        let host = resolved.as_str();
        for (namespace, name) in resolved.services(source_namespace, &self.mesh.cluster_domain) {
            if let Some(found) = self.service_port(namespace, name, port) {
                return Some(AuthorityTarget::Service(found));
            }
        }
        self.virtual_host(host).map(AuthorityTarget::VirtualHost)
    }

    /// The VirtualService host that matches `host` (lower case) most specifically.
    #[must_use]
    pub fn virtual_host(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        if let Some(found) = self.virtual_hosts.exact.get(host) {
            return Some(found);
        }
        if self.virtual_hosts.wildcard.is_empty() {
            return None;
        }
        // A wildcard is `*.suffix` or `*-suffix` (Istio `IsWildcardDNS1123Label`), so that only
        // these two bytes can begin what follows the star; the longest suffix comes first.
        host.bytes()
            .enumerate()
            .filter(|(_, byte)| matches!(byte, b'.' | b'-'))
            .find_map(|(at, _)| self.virtual_hosts.wildcard.get(&host[at..]))
            .or_else(|| self.virtual_hosts.wildcard.get(""))
    }
}
