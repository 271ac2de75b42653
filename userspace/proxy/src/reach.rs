//! How an endpoint is reached from a pod of this node, and connecting to it.
//!
//! An enrolled destination is reached through the mesh or not at all: on this node directly into
//! its namespace, after its own authorization and where the pods' network lets one there
//! ([`crate::near`]); on another one by the transport. Plaintext is for
//! destinations that are not in the mesh, and for ports that a pod keeps out of it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fairlead_config::model::{Inbound, PeerWire, Snapshot, UpstreamTls, Workload};
use fairlead_policy::ConnView;
use fairlead_policy::authz::Verdict as Authorization;
use fairlead_types::{ClientAddr, Refusal, ResponseFlags, SpiffeId};
use http::HeaderValue;
use tokio::net::TcpStream;

use crate::choice::{Choice, Chosen};
use crate::http::arrive;
use crate::live::{Facts, Guarded};
use crate::report::Verdict;
use crate::sock;
use crate::state::{Pod, Shared, address_like};
use crate::transport::{self, StreamMeta, Target, TransportError, Tunnel, Wire};

/// Port of HBONE (Istio ambient).
pub(crate) const HBONE_PORT: u16 = 15008;
/// Endpoints that one connection or request tries at most, where each refuses to be connected.
pub(crate) const CONNECT_ATTEMPTS: usize = 5;

/// Endpoints of a cluster that sessions are opened to ahead of their use.
const WARMED: usize = 16;

/// A pod of this node that wants to reach something, on behalf of one connection.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) workload: Arc<Workload>,
    /// The application's own address, as its socket has it.
    pub(crate) peer: SocketAddr,
    /// `baggage`, made when it is first wanted.
    pub(crate) baggage: OnceLock<Option<HeaderValue>>,
}

/// The way to an endpoint.
pub(crate) enum Way {
    /// An enrolled pod of this node.
    Local {
        /// Its namespace.
        pod: Arc<Pod>,
        /// Its policy.
        inbound: Arc<Inbound>,
    },
    /// Not in the mesh, or a port that is not: plaintext, from the source's namespace.
    Plain,
    /// Elsewhere in the mesh.
    Mesh(Target),
}

/// Why an endpoint was not reached.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) class: Refusal,
    pub(crate) flags: ResponseFlags,
    pub(crate) reason: String,
    /// Whether another endpoint may be tried: nothing has been sent.
    pub(crate) elsewhere: bool,
}

impl Failure {
    pub(crate) fn new(class: Refusal, reason: impl Into<String>, elsewhere: bool) -> Self {
        let reason = reason.into();
        let flags = Verdict::refused(class, "").flags;
        Self { class, flags, reason, elsewhere }
    }

    pub(crate) fn verdict(self) -> Verdict {
        Verdict {
            refusal: Some(self.class),
            flags: self.flags,
            reason: Some(self.reason.into()),
            details: None,
        }
    }

    /// A system call that failed.
    pub(crate) fn io(to: SocketAddr, error: &io::Error) -> Self {
        let class = if is_shortage(error) { Refusal::Overload } else { Refusal::Connect };
        Self::new(class, format!("connecting to {to}: {error}"), true)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self {
            class: error.refusal(),
            flags: error.flags(),
            elsewhere: error.is_safe_to_retry(),
            reason: error.to_string(),
        }
    }
}

/// A connected upstream of bytes.
pub(crate) enum Upstream {
    Tcp(TcpStream),
    Tunnel(Box<Tunnel>),
}

impl Caller {
    /// The client's address as the destination is to see it: the pod's own, with the port of the
    /// application's socket. (Capture makes the socket's own address a loopback one.)
    pub(crate) fn client_for(&self, to: SocketAddr) -> ClientAddr {
        let ip = address_like(&self.workload, to.ip()).unwrap_or_else(|| self.peer.ip());
        ClientAddr(SocketAddr::new(ip, self.peer.port()))
    }

    /// What the destination's policy is told of this connection.
    pub(crate) fn facts(&self, to: SocketAddr) -> Facts {
        Facts {
            peer: Some(self.workload.identity.clone()),
            fingerprint: self.shared.transport.fingerprint(&self.workload.identity),
            source: self.client_for(to).0,
            destination: to,
        }
    }

    /// The way to an endpoint.
    pub(crate) fn way(
        &self,
        snapshot: &Snapshot,
        choice: &Choice,
        chosen: &Chosen,
    ) -> Result<Way, Failure> {
        self.way_to(snapshot, choice.tls(), chosen.addr, chosen.workload.as_ref())
    }

    /// Opens sessions to the endpoints of a cluster when a pod first uses it, so that later
    /// connections find them open.
    pub(crate) fn warm(&self, snapshot: &Snapshot, choice: &Choice) {
        let Choice::Cluster(cluster, family) = choice else { return };
        if cluster.endpoints.len() < 2 || !self.pod.first_use(cluster.id) {
            return;
        }
        for endpoint in cluster.endpoints.iter().take(WARMED) {
            let addr = family.address(endpoint);
            let way = self.way_to(snapshot, choice.tls(), addr, endpoint.workload.as_ref());
            if let Ok(Way::Mesh(target)) = way {
                self.shared.transport.warm(&target);
            }
        }
    }

    fn way_to(
        &self,
        snapshot: &Snapshot,
        tls: &UpstreamTls,
        addr: SocketAddr,
        workload: Option<&Arc<Workload>>,
    ) -> Result<Way, Failure> {
        if let UpstreamTls::Refused { reason } = tls {
            return Err(Failure::new(Refusal::NoRoute, &**reason, false));
        }
        let Some(workload) = workload else {
            return plain(tls, addr);
        };
        if workload.excludes(addr.port()) {
            return plain(tls, addr);
        }
        let expected = |identity: &SpiffeId| match tls {
            UpstreamTls::Mutual { sans } if !sans.is_empty() => sans.contains(identity),
            _ => true,
        };
        if let (true, Some(inbound)) = (workload.enrolled, snapshot.inbound.get(&workload.id)) {
            if !expected(&workload.identity) {
                return Err(Failure::new(
                    Refusal::IdentityError,
                    format!("{} is not among the subjectAltNames wanted", workload.identity),
                    true,
                ));
            }
            return match self.shared.pod(&workload.id) {
                Some(pod) => Ok(Way::Local { pod, inbound: Arc::clone(inbound) }),
                // Delivering past its capture would be delivering past its policy.
                None => Err(Failure::new(
                    Refusal::Connect,
                    format!("pod {} of this node is enrolled but not captured yet", workload.id),
                    true,
                )),
            };
        }
        let (wire, connect_to) = match workload.wire {
            PeerWire::Native => (Wire::Native, addr),
            PeerWire::Hbone => (Wire::Hbone, SocketAddr::new(addr.ip(), HBONE_PORT)),
            PeerWire::Plain if workload.enrolled => {
                return Err(Failure::new(
                    Refusal::IdentityError,
                    format!("pod {} is enrolled but nothing says how to reach it", workload.id),
                    true,
                ));
            }
            PeerWire::Plain => return plain(tls, addr),
        };
        let expect: Arc<[SpiffeId]> = match tls {
            UpstreamTls::Mutual { sans } if !sans.is_empty() => sans.iter().cloned().collect(),
            _ => Arc::new([workload.identity.clone()]),
        };
        Ok(Way::Mesh(Target::new(
            wire,
            Arc::clone(&self.pod.port),
            self.workload.identity.clone(),
            connect_to,
            addr,
            expect,
        )))
    }

    /// Connects for bytes. Authorization of a local destination comes first; whether the pods' network
    /// lets one there ([`Caller::reachable`]) has been asked before.
    pub(crate) async fn connect(
        &self,
        way: &Way,
        to: SocketAddr,
        timeout: Duration,
        service: Option<&str>,
    ) -> Result<Upstream, Failure> {
        match way {
            Way::Local { pod, inbound } => {
                authorize(inbound, &self.facts(to))?;
                let stream = deliver(pod, self.client_for(to), to, timeout).await?;
                Ok(Upstream::Tcp(stream))
            }
            Way::Plain => Ok(Upstream::Tcp(self.connect_plain(to, timeout).await?)),
            Way::Mesh(target) => {
                let meta = self.meta(to, service);
                Ok(Upstream::Tunnel(Box::new(self.tunnel(target, &meta, timeout).await?)))
            }
        }
    }

    /// Opens a tunnel: within the time that a session may take, and the other node its connection
    /// to the application.
    pub(crate) async fn tunnel(
        &self,
        target: &Target,
        meta: &StreamMeta,
        timeout: Duration,
    ) -> Result<Tunnel, Failure> {
        let limit = timeout.saturating_add(transport::limits::PLACE_TIMEOUT);
        Ok(self.shared.transport.tunnel_within(target, meta, limit).await?)
    }

    /// Connects in plaintext from the pod's own namespace.
    pub(crate) async fn connect_plain(
        &self,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<TcpStream, Failure> {
        let io = |e| Failure::io(to, &e);
        let socket = self.pod.port.outbound_socket(to).map_err(io)?;
        sock::connect(socket, to, timeout).await.map_err(io)
    }

    /// What the transport tells the other node of this connection.
    pub(crate) fn meta(&self, to: SocketAddr, service: Option<&str>) -> StreamMeta {
        let baggage = self.baggage.get_or_init(|| {
            let w = &self.workload;
            let cluster = self.shared.snapshots.with(|s| Arc::clone(&s.mesh.cluster_name));
            let (service, revision) = (&w.canonical_name, &w.canonical_revision);
            let kind = "deployment";
            transport::baggage(&cluster, &w.namespace, kind, &w.workload_name, service, revision)
        });
        StreamMeta {
            client: self.client_for(to),
            baggage: baggage.clone(),
            service: service.and_then(|s| HeaderValue::from_str(s).ok()),
        }
    }
}

/// Whether this node lacks what a connection takes.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOMEM, ENOBUFS.
    matches!(error.raw_os_error(), Some(24 | 23 | 12 | 105))
}

fn plain(tls: &UpstreamTls, to: SocketAddr) -> Result<Way, Failure> {
    match tls {
        UpstreamTls::Mutual { .. } => Err(Failure::new(
            Refusal::IdentityError,
            format!("a DestinationRule wants ISTIO_MUTUAL, but {to} is not in the mesh"),
            true,
        )),
        _ => Ok(Way::Plain),
    }
}

/// Asks the destination's policy about a connection.
pub(crate) fn authorize(inbound: &Inbound, facts: &Facts) -> Result<(), Failure> {
    let view = ConnView {
        peer: facts.peer.as_ref(),
        source: facts.source,
        destination: facts.destination,
        sni: None,
    };
    match inbound.authz.connection(&view) {
        Authorization::Allow => Ok(()),
        Authorization::Deny(reason) => Err(Failure::new(Refusal::Deny, reason.to_string(), false)),
    }
}

/// Asks the destination's policy about a connection that exists, with the request that began it
/// where there was one. A pod that has left the mesh has none to ask: joining and leaving disturb
/// no connection.
pub(crate) fn still_admitted(snapshot: &Snapshot, guarded: &Guarded) -> Result<(), Failure> {
    let facts = &guarded.facts;
    let Some(inbound) = snapshot.inbound.get(&guarded.workload) else { return Ok(()) };
    let port = facts.destination.port();
    if facts.peer.is_none() && inbound.refuses_plaintext(port) {
        let reason = format!("port {port} takes mTLS only (STRICT)");
        return Err(Failure::new(Refusal::NetworkPolicy, reason, false));
    }
    match &guarded.request {
        Some(request) => arrive::authorize(inbound, facts, request)
            .map_err(|reply| Failure::new(Refusal::Deny, reply.reason, false)),
        None => authorize(inbound, facts),
    }
}

/// Connects to the application of a pod, which sees `client` as its peer.
pub(crate) async fn deliver(
    pod: &Pod,
    client: ClientAddr,
    to: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, Failure> {
    let io = |e| Failure::io(to, &e);
    let socket = pod.port.delivery_socket(client, to).map_err(io)?;
    sock::connect(socket, to, timeout).await.map_err(io)
}
