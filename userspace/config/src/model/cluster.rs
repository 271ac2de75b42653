//! Clusters: where a route leads, with the endpoints behind it. The word is Envoy's, because
//! Istio's telemetry prints it (`upstream_cluster`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_policy::balance::{BalancerState, Candidate, Load, LoadBalancer};
use fairlead_policy::route::ClusterId;
use fairlead_types::{AppProtocol, Labels, SpiffeId};

use super::{Service, Workload};

/// A (service, port, subset), with what DestinationRule says of it.
#[derive(Debug)]
pub struct Cluster {
    /// Its number.
    pub id: ClusterId,
    /// `outbound|<port>|<subset>|<host>`.
    pub name: Arc<str>,
    /// The service.
    pub service: Arc<Service>,
    /// Port of the service.
    pub port: u16,
    /// Protocol of that port: what the upstream speaks.
    pub protocol: AppProtocol,
    /// Subset, where the route names one.
    pub subset: Option<Arc<str>>,
    /// The client ([`super::Snapshot::client`]) that uses this variant of the cluster, where a
    /// DestinationRule makes it differ from what everybody uses.
    pub client: Option<Arc<str>>,
    /// DestinationRule as it applies here.
    pub policy: ClusterPolicy,
    /// Ready endpoints: the near ones first, where the service wants that, then by address.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// Which of them are near.
    pub locality: Locality,
    /// Counters of the balancer; they outlive snapshots.
    pub state: Arc<BalancerState>,
}

/// What a service wants of the place of its endpoints (`trafficDistribution`, topology hints,
/// `internalTrafficPolicy`), settled for this node when the snapshot is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The endpoints come in groups, the nearest first: this is where each of them ends but the
    /// last. Empty: all are as good.
    pub ends: Box<[usize]>,
    /// `internalTrafficPolicy: Local`: there are none but those of this node.
    pub local_only: bool,
}

impl Cluster {
    /// The endpoints to pick from when those of the indices `tried` have failed: groups of near
    /// ones are left only when all of them have.
    #[must_use]
    pub fn candidates(&self, tried: &[usize]) -> &[Arc<Endpoint>] {
        let left = |end: &&usize| (0..**end).any(|index| !tried.contains(&index));
        let end = self.locality.ends.iter().find(left);
        end.and_then(|end| self.endpoints.get(..*end)).unwrap_or(&self.endpoints)
    }

    /// Why there is no endpoint, for people.
    #[must_use]
    pub fn why_none(&self) -> &'static str {
        if self.locality.local_only {
            "no endpoint is ready on this node, and the service has internalTrafficPolicy: Local"
        } else {
            "no endpoint is ready"
        }
    }
}

/// What DestinationRule says of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterPolicy {
    /// `trafficPolicy.loadBalancer`.
    pub balancer: LoadBalancer,
    /// `trafficPolicy.tls`.
    pub tls: UpstreamTls,
    /// `trafficPolicy.connectionPool.tcp.connectTimeout`, else the mesh's.
    pub connect_timeout: Duration,
    /// Labels that endpoints need to have: those of the subset.
    pub labels: Arc<Labels>,
}

/// `trafficPolicy.tls.mode`.
#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamTls {
    /// No rule: mesh transport to enrolled workloads, plaintext to others (auto mTLS).
    Auto,
    /// `DISABLE`: plaintext to workloads outside the mesh. Between enrolled pods it is carried by
    /// the mesh all the same (docs/decisions/0007).
    Disable,
    /// `ISTIO_MUTUAL`: mesh transport or nothing; with SANs that the peer must have, when given.
    Mutual {
        /// `subjectAltNames`; empty: the identity of the endpoint's service account.
        sans: Box<[SpiffeId]>,
    },
    /// Something that Fairlead does not do (TLS origination, a SAN that no workload can have):
    /// connections are refused with this reason, because anything else would send in the clear
    /// what somebody wanted protected.
    Refused {
        /// Why.
        reason: Arc<str>,
    },
}

/// One address behind a service port. There are as many as there is of nothing else, so it is
/// small: 64 bytes with what the allocator adds.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload there, when it is known.
    pub workload: Option<Arc<Workload>>,
    /// The endpoint that it takes the place of, as far as that was busy: both count there.
    counts_at: Option<Arc<Endpoint>>,
    /// Address of the application; a `SocketAddr` has room for what no endpoint has.
    ip: IpAddr,
    port: u16,
    load: Load,
}

impl Endpoint {
    /// An endpoint that is not busy.
    #[must_use]
    pub fn new(addr: SocketAddr, workload: Option<Arc<Workload>>) -> Self {
        let (ip, port) = (addr.ip(), addr.port());
        Self { workload, counts_at: None, ip, port, load: Load::default() }
    }

    /// An endpoint at the same address as `old`, as busy as that and counted with it.
    #[must_use]
    pub fn in_place_of(old: &Arc<Self>, workload: Option<Arc<Workload>>) -> Self {
        let counter = old.counts_at.as_ref().unwrap_or(old);
        let busy = counter.load.active() > 0;
        Self { counts_at: busy.then(|| Arc::clone(counter)), ..Self::new(old.addr(), workload) }
    }

    /// Address of the application.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl Candidate for Endpoint {
    /// Requests and connections on their way, for LEAST_REQUEST.
    fn load(&self) -> &Load {
        self.counts_at.as_ref().map_or(&self.load, |other| &other.load)
    }
}
