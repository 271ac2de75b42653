//! Which endpoint: one of a cluster's, or the address that the application asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_config::model::{Cluster, Endpoint, Snapshot, UpstreamTls, Workload};
use fairlead_policy::balance::{self, LoadGuard};

use crate::random::random;

/// What an endpoint is chosen from.
#[derive(Clone)]
pub(crate) enum Choice {
    /// The endpoints of a cluster, reached in the address family that the application used.
    Cluster(Arc<Cluster>, Family),
    /// The address that the application asked for.
    Direct {
        /// The address.
        addr: SocketAddr,
        /// Who is there, when it is known.
        workload: Option<Arc<Workload>>,
        /// `connectTimeout` of the mesh.
        connect_timeout: Duration,
        /// Whose DestinationRule applies: the headless service's that the address belongs to.
        cluster: Option<Arc<Cluster>>,
    },
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn of(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The endpoint's address in this family, where its pod has one: the server then sees the
    /// client's address of the same family, as it would without a mesh.
    pub(crate) fn address(self, endpoint: &Endpoint) -> SocketAddr {
        let addr = endpoint.addr();
        if Self::of(addr) == self {
            return addr;
        }
        let same = |ip: &&IpAddr| ip.is_ipv4() == (self == Self::V4);
        let ip = endpoint.workload.as_ref().and_then(|w| w.ips.iter().find(same));
        ip.map_or(addr, |ip| SocketAddr::new(*ip, addr.port()))
    }
}

/// An endpoint that was chosen; its load is counted as long as this lives.
pub(crate) struct Chosen {
    /// Its index in the cluster, for exclusion by a retry.
    pub(crate) index: usize,
    pub(crate) addr: SocketAddr,
    pub(crate) workload: Option<Arc<Workload>>,
    _load: Option<LoadGuard<Arc<Endpoint>>>,
}

impl Choice {
    /// The choice for `addr` itself.
    pub(crate) fn direct(snapshot: &Snapshot, addr: SocketAddr) -> Self {
        Self::Direct {
            addr,
            workload: snapshot.workloads.get(&addr.ip()).cloned(),
            connect_timeout: snapshot.mesh.connect_timeout,
            cluster: None,
        }
    }

    /// The choice for `addr` itself, which belongs to `cluster`: what is configured for that holds.
    pub(crate) fn member(snapshot: &Snapshot, cluster: &Arc<Cluster>, addr: SocketAddr) -> Self {
        let workload = snapshot.workloads.get(&addr.ip()).cloned();
        let connect_timeout = cluster.policy.connect_timeout;
        Self::Direct { addr, workload, connect_timeout, cluster: Some(Arc::clone(cluster)) }
    }

    /// The choice for a cluster: itself, or `asked` where its balancer passes that through.
    pub(crate) fn cluster(snapshot: &Snapshot, cluster: &Arc<Cluster>, asked: SocketAddr) -> Self {
        if cluster.policy.balancer == balance::LoadBalancer::Passthrough {
            return Self::member(snapshot, cluster, asked);
        }
        Self::Cluster(Arc::clone(cluster), Family::of(asked))
    }

    pub(crate) fn as_cluster(&self) -> Option<&Arc<Cluster>> {
        match self {
            Self::Cluster(cluster, _) => Some(cluster),
            Self::Direct { .. } => None,
        }
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        match self {
            Self::Cluster(cluster, _) => cluster.policy.connect_timeout,
            Self::Direct { connect_timeout, .. } => *connect_timeout,
        }
    }

    pub(crate) fn tls(&self) -> &UpstreamTls {
        match self {
            Self::Cluster(cluster, _) => &cluster.policy.tls,
            Self::Direct { cluster: Some(cluster), .. } => &cluster.policy.tls,
            Self::Direct { cluster: None, .. } => &UpstreamTls::Auto,
        }
    }

    /// How many different endpoints there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Cluster(cluster, _) => cluster.endpoints.len(),
            Self::Direct { .. } => 1,
        }
    }

    /// Why there is nothing to pick, for people.
    pub(crate) fn why_none(&self) -> &'static str {
        self.as_cluster().map_or("no endpoint is ready", |cluster| cluster.why_none())
    }

    /// Picks an endpoint, one that is not in `tried` where there is one.
    pub(crate) fn pick(&self, tried: &[usize]) -> Option<Chosen> {
        match self {
            Self::Cluster(cluster, family) => {
                let endpoints = cluster.candidates(tried);
                let balancer = &cluster.policy.balancer;
                let index = balance::pick(balancer, &cluster.state, endpoints, tried, random())?;
                let endpoint = endpoints.get(index)?;
                Some(Chosen {
                    index,
                    addr: family.address(endpoint),
                    workload: endpoint.workload.clone(),
                    _load: Some(LoadGuard::enter(Arc::clone(endpoint))),
                })
            }
            Self::Direct { addr, workload, .. } => {
                Some(Chosen { index: 0, addr: *addr, workload: workload.clone(), _load: None })
            }
        }
    }
}
