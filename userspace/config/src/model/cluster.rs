//! Clusters: where a route leads, with the endpoints behind it. The word is Envoy's, because
//! Istio's telemetry prints it (`upstream_cluster`).

use std::net::SocketAddr;
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
    /// The namespace whose sources use this variant of the cluster, where a DestinationRule makes
    /// it differ from what everybody uses.
    pub client_namespace: Option<Arc<str>>,
    /// DestinationRule as it applies here.
    pub policy: ClusterPolicy,
    /// Ready endpoints, ordered by address.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// Counters of the balancer; they outlive snapshots.
    pub state: Arc<BalancerState>,
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

/// One address behind a service port.
#[derive(Debug)]
pub struct Endpoint {
    /// Address of the application.
    pub addr: SocketAddr,
    /// The workload there, when it is known.
    pub workload: Option<Arc<Workload>>,
    /// Requests and connections on their way, for LEAST_REQUEST.
    pub load: Load,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.load
    }
}
