//! Connections that come to a pod of this node from outside: the mesh's sessions, and plaintext
//! where PeerAuthentication allows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_config::model::{Inbound, MtlsMode, Snapshot};
use fairlead_telemetry::{ServiceLabels, WorkloadLabels};
use fairlead_types::{AppProtocol, Refusal, ResponseFlags, SpiffeId};
use tokio::net::TcpStream;

use crate::detect::{Sniff, sniff};
use crate::l4;
use crate::labels::{self, Parties, Sides};
use crate::live::{Coming, Direction, State};
use crate::outbound::OVER_BOUND;
use crate::plaintext::Plain;
use crate::reach::HBONE_PORT;
use crate::report::{TcpReport, Verdict};
use crate::sock;
use crate::state::{Pod, Shared};
use crate::transport::{self, MAX_CLIENT_HELLO, Peek, TransportError, Wire};

/// How long a client of a port that also takes plaintext may be silent before its server is
/// given the word: a banner has to come within 100 ms, and a mesh client speaks at once.
const PEEK: Duration = Duration::from_millis(40);
/// The same where the client's address is an enrolled pod's: what comes from there begins with a
/// ClientHello, unless the pod's node does not know of the enrolment yet or leaves the port out. A
/// server's word given too early would cross the wire in plaintext.
const PEEK_ENROLLED: Duration = Duration::from_millis(500);
/// How long a client may take to the end of its ClientHello, or, where only the mesh is allowed,
/// to its first byte.
pub(crate) const HELLO: Duration = Duration::from_secs(5);
/// What is looked at first: enough to tell TLS from anything else.
const GLANCE: usize = 3;

/// What an inbound connection began with.
pub(crate) enum Arrival {
    Mesh(Wire),
    Plaintext,
    /// Nothing yet.
    Silent,
    /// Nothing, and nothing will come.
    Ended,
}

/// Whether the pod with this address is enrolled.
pub(crate) fn of_mesh(snapshot: &Snapshot, peer: SocketAddr) -> bool {
    snapshot.workloads.get(&peer.ip()).is_some_and(|workload| workload.enrolled)
}

/// Why nothing is delivered of a connection that ended before it began.
pub(crate) const NO_HELLO: &str = "an enrolled pod's connection ended before its ClientHello";

/// A pod as the destination of a connection.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<Pod>,
}

impl Receiver {
    pub(crate) fn parties(
        &self,
        snapshot: &Snapshot,
        inbound: Option<&Inbound>,
        client: SocketAddr,
        peer: Option<&SpiffeId>,
        port: u16,
    ) -> Parties {
        let telemetry = &self.shared.telemetry;
        let source = match snapshot.workloads.get(&client.ip()) {
            // An address alone does not make a verified peer somebody else.
            Some(w) if peer.is_none_or(|p| *p == w.identity) => {
                labels::workload(telemetry, snapshot, w)
            }
            _ => WorkloadLabels::unknown(),
        };
        let service = inbound
            .and_then(|i| i.port(port))
            .and_then(|p| p.service.as_ref())
            .map_or_else(ServiceLabels::unknown, |s| self.shared.labels.service(s));
        Parties {
            source: source.with_principal(peer),
            destination: labels::workload(telemetry, snapshot, &self.pod.workload(snapshot)),
            service,
            sides: Sides::Destination,
            verified: peer.cloned(),
        }
    }
}

/// Serves one connection at a pod's inbound listener.
pub(crate) async fn serve(shared: Arc<Shared>, pod: Arc<Pod>, tcp: TcpStream, coming: Coming) {
    let Ok((local, peer)) = l4::addresses(&tcp) else {
        return; // It was gone before it could be looked at.
    };
    let receiver = Receiver { shared: Arc::clone(&shared), pod: Arc::clone(&pod) };
    let snapshot = shared.snapshots.load();
    let inbound = pod.inbound(&snapshot).cloned();
    let parties = receiver.parties(&snapshot, inbound.as_deref(), peer, None, local.port());
    let entry = shared.live.add(Direction::Inbound, &pod.id, peer, local, None);
    drop(coming);
    let mut report = TcpReport::new(&shared, entry, parties, peer, local);
    let refuse = |tcp, mut report: TcpReport, class, reason: String| {
        report.verdict = Verdict::refused(class, reason);
        sock::reset(tcp);
    };
    let _admission = match shared.admit(&pod) {
        Ok(admission) => admission,
        Err(class) => return refuse(tcp, report, class, OVER_BOUND.into()),
    };
    let Some(inbound) = inbound else {
        let reason = format!("pod {} is not enrolled in the present configuration", pod.id);
        return refuse(tcp, report, Refusal::NetworkPolicy, reason);
    };
    let mtls = inbound.mtls(local.port());
    let protocol = inbound.port(local.port()).map_or(AppProtocol::Detect, |p| p.protocol);
    let of_mesh = of_mesh(&snapshot, peer);
    let patience = match mtls {
        MtlsMode::Strict => HELLO,
        MtlsMode::Disable if protocol == AppProtocol::ServerFirst => Duration::ZERO,
        MtlsMode::Permissive if of_mesh => PEEK_ENROLLED,
        MtlsMode::Permissive | MtlsMode::Disable => PEEK,
    };
    let looked = tokio::select! {
        looked = look(&tcp, local.port(), patience) => looked,
        cut = report.entry.until_cut() => Err(std::io::Error::other(cut.to_string())),
    };
    match looked {
        Err(error) => {
            report.verdict = Verdict {
                flags: ResponseFlags::DownstreamConnectionTermination,
                reason: Some(format!("before its first bytes were complete: {error}").into()),
                ..Verdict::default()
            };
            sock::reset(tcp);
        }
        Ok(Arrival::Mesh(wire)) => {
            Box::pin(mesh(receiver, &snapshot, tcp, wire, report)).await;
        }
        // The node daemon of the client died before its ClientHello: what the server would say to
        // a client that ends at once is not for the wire.
        Ok(Arrival::Ended) if of_mesh && mtls != MtlsMode::Disable => {
            refuse(tcp, report, Refusal::TlsFailure, NO_HELLO.into());
        }
        Ok(Arrival::Silent | Arrival::Ended | Arrival::Plaintext)
            if inbound.refuses_plaintext(local.port()) =>
        {
            let reason =
                format!("plaintext to port {}, which takes mTLS only (STRICT)", local.port());
            refuse(tcp, report, Refusal::NetworkPolicy, reason);
        }
        Ok(Arrival::Silent) => {
            let plain = Plain { receiver, inbound, peer, local, protocol };
            plain.silent(&snapshot, tcp, report).await;
        }
        Ok(Arrival::Plaintext | Arrival::Ended) => {
            let plain = Plain { receiver, inbound, peer, local, protocol };
            plain.spoken(&snapshot, tcp, report).await;
        }
    }
}

/// Looks at the first bytes of a client, for at most `patience` if there is none.
pub(crate) async fn look(
    tcp: &TcpStream,
    port: u16,
    patience: Duration,
) -> std::io::Result<Arrival> {
    match sock::peek_some(tcp, patience).await? {
        None => return Ok(Arrival::Silent),
        Some(0) => return Ok(Arrival::Ended),
        Some(_) => {}
    }
    let hello =
        async {
            let mut glance = [0; GLANCE];
            let may_be_tls = sock::peek_until(tcp, &mut glance, |bytes, end| match sniff(bytes) {
                Sniff::Tls => Some(true),
                Sniff::NeedMore if bytes == [0x16] && !end => None,
                _ => Some(false),
            });
            if !may_be_tls.await? {
                return Ok(Arrival::Plaintext);
            }
            let mut buf = vec![0; MAX_CLIENT_HELLO];
            let peek = sock::peek_until(tcp, &mut buf, |bytes, end| {
                match transport::is_client_hello_with_alpn(bytes) {
                    Peek::NeedMore if !end => None,
                    peek => Some(peek),
                }
            });
            Ok(match peek.await? {
                Peek::Mesh(Wire::Native) => Arrival::Mesh(Wire::Native),
                Peek::Mesh(Wire::Hbone) if port == HBONE_PORT => Arrival::Mesh(Wire::Hbone),
                _ => Arrival::Plaintext,
            })
        };
    tokio::time::timeout(HELLO, hello)
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "ClientHello timeout"))?
}

/// Serves a session of the mesh. Its streams have reports of their own.
pub(crate) async fn mesh(
    receiver: Receiver,
    snapshot: &Snapshot,
    tcp: TcpStream,
    wire: Wire,
    mut report: TcpReport,
) {
    let workload = receiver.pod.workload(snapshot);
    let inbound = transport::Inbound {
        wire,
        identity: workload.identity.clone(),
        pod_ips: workload.ips.iter().copied().collect(),
    };
    let shared = Arc::clone(&receiver.shared);
    report.entry.set(State::Bytes, None);
    let served = tokio::select! {
        served = shared.transport.serve(tcp, &inbound, Arc::new(receiver)) => served,
        cut = report.entry.until_cut() => {
            report.verdict.reason = Some(cut.to_string().into());
            return;
        }
    };
    match served {
        Ok(()) | Err(TransportError::SessionLost(_)) => report.becomes_http(),
        Err(error) => {
            report.verdict = Verdict {
                refusal: Some(error.refusal()),
                flags: ResponseFlags::DownstreamProtocolError,
                reason: Some(error.to_string().into()),
                details: None,
            };
        }
    }
}

/// What a connection costs while it is carried, in the task that carries it.
#[cfg(test)]
pub(crate) fn future_size(shared: Arc<Shared>, pod: Arc<Pod>, tcp: TcpStream) -> usize {
    let coming = shared.live.coming();
    std::mem::size_of_val(&serve(shared, pod, tcp, coming))
}
