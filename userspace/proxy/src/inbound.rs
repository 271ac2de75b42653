//! Connections that come to a pod of this node from outside: the mesh's sessions, and plaintext
//! where PeerAuthentication allows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_config::model::{Inbound, MtlsMode, Snapshot};
use fairlead_telemetry::{ServiceLabels, WorkloadLabels};
use fairlead_types::{AppProtocol, ClientAddr, OriginalDst, Refusal, ResponseFlags, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::detect::{Sniff, sniff};
use crate::first::{Opening, SILENCE, read_opening};
use crate::http::{arrive, server};
use crate::l4;
use crate::labels::{self, Parties, Sides};
use crate::live::{Direction, Facts, State};
use crate::outbound::OVER_BOUND;
use crate::reach::{self, HBONE_PORT, Upstream};
use crate::report::{TcpReport, Verdict};
use crate::sock::{self, Prefixed};
use crate::state::{Pod, Shared};
use crate::transport::{
    self, InboundHandler, InboundStream, MAX_CLIENT_HELLO, Peek, Peer, TransportError, TunnelOffer,
    UpgradeOffer, Wire,
};

/// How long a client of a port that also takes plaintext may be silent before its server is
/// given the word: a banner has to come within 100 ms, and a mesh client speaks at once.
const PEEK: Duration = Duration::from_millis(40);
/// How long a client may take to the end of its ClientHello, or, where only the mesh is allowed,
/// to its first byte.
const HELLO: Duration = Duration::from_secs(5);
/// What is looked at first: enough to tell TLS from anything else.
const GLANCE: usize = 3;

/// What an inbound connection began with.
enum Arrival {
    Mesh(Wire),
    Plaintext,
    Silent,
}

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
pub(crate) async fn serve(shared: Arc<Shared>, pod: Arc<Pod>, tcp: TcpStream) {
    let Ok((local, peer)) = l4::addresses(&tcp) else {
        return; // It was gone before it could be looked at.
    };
    let receiver = Receiver { shared: Arc::clone(&shared), pod: Arc::clone(&pod) };
    let snapshot = shared.snapshots.load();
    let inbound = snapshot.inbound.get(&pod.id).cloned();
    let parties = receiver.parties(&snapshot, inbound.as_deref(), peer, None, local.port());
    let entry = shared.live.add(Direction::Inbound, &pod.id, peer, local, None);
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
    let patience = match mtls {
        MtlsMode::Strict => HELLO,
        MtlsMode::Disable if protocol == AppProtocol::ServerFirst => Duration::ZERO,
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
        Ok(Arrival::Silent | Arrival::Plaintext) if mtls == MtlsMode::Strict => {
            let reason =
                format!("plaintext to port {}, which takes mTLS only (STRICT)", local.port());
            refuse(tcp, report, Refusal::NetworkPolicy, reason);
        }
        Ok(Arrival::Silent) => {
            let plain = Plain { receiver, inbound, peer, local, protocol };
            plain.silent(&snapshot, tcp, report).await;
        }
        Ok(Arrival::Plaintext) => {
            let plain = Plain { receiver, inbound, peer, local, protocol };
            plain.spoken(&snapshot, tcp, report).await;
        }
    }
}

/// Looks at the first bytes of a client, for at most `patience` if there is none.
async fn look(tcp: &TcpStream, port: u16, patience: Duration) -> std::io::Result<Arrival> {
    if !sock::peek_some(tcp, patience).await? {
        return Ok(Arrival::Silent);
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
async fn mesh(
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

/// A connection in plaintext, where that is allowed.
struct Plain {
    receiver: Receiver,
    inbound: Arc<Inbound>,
    peer: SocketAddr,
    local: SocketAddr,
    protocol: AppProtocol,
}

impl Plain {
    fn facts(&self) -> Facts {
        Facts { peer: None, source: self.peer, destination: self.local }
    }

    /// The client has spoken, and it was no mesh ClientHello.
    async fn spoken(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        let mut first = BytesMut::new();
        let opening = if self.protocol.is_http() || self.protocol.needs_detection() {
            read_opening(&tcp, &mut first, Some(SILENCE)).await
        } else {
            Ok(Opening::Bytes)
        };
        let http2 = match opening {
            Ok(Opening::Http2) => true,
            Ok(Opening::Http1) => false,
            Ok(_) if self.protocol.is_http() => false,
            Ok(_) => return self.bytes(snapshot, tcp, first.freeze(), report).await,
            Err(error) => {
                report.verdict.reason = Some(error.to_string().into());
                return;
            }
        };
        report.becomes_http();
        let io = Prefixed::new(first.freeze(), tcp);
        let arrival = arrive::Arrival {
            client: ClientAddr(self.peer),
            dst: OriginalDst(self.local),
            facts: self.facts(),
            receiver: self.receiver,
        };
        let served = server::serve_inbound(arrival, io, http2, &report.entry);
        let broken = Box::pin(served).await;
        report.broke_protocol(broken);
    }

    /// The client is silent: its server may speak first. A mesh client that was merely slow is
    /// still served as one, as long as nothing was sent to it.
    async fn silent(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        if self.protocol.is_http() {
            // A client may take its time before its first request; its server has nothing to say.
            let mut byte = [0];
            tokio::select! {
                _ = tcp.peek(&mut byte) => {}
                cut = report.entry.until_cut() => {
                    report.verdict.reason = Some(cut.to_string().into());
                    return sock::reset(tcp);
                }
            }
            return self.after_silence(snapshot, tcp, report).await;
        }
        let app = match self.connect(snapshot, &mut report).await {
            Ok(app) => app,
            // HTTP may be allowed to some requests where a connection is not to all: then the
            // server cannot be given the word, and the client has to speak.
            Err(_) if self.inbound.authz.needs_http(self.local.port()) => {
                report.verdict = Verdict::default();
                return self.after_silence(snapshot, tcp, report).await;
            }
            Err(verdict) => {
                report.verdict = verdict;
                return sock::reset(tcp);
            }
        };
        let (mut byte, mut client_byte) = ([0], [0]);
        let server_first = tokio::select! {
            biased;
            spoke = app.peek(&mut byte) => spoke.is_ok(),
            spoke = tcp.peek(&mut client_byte) => spoke.is_err(),
            cut = report.entry.until_cut() => {
                report.verdict.reason = Some(cut.to_string().into());
                return sock::reset(tcp);
            }
        };
        if server_first {
            report.open();
            report.verdict =
                l4::relay(tcp, Upstream::Tcp(app), Bytes::new(), Bytes::new(), &report.entry).await;
        } else {
            drop(app);
            self.after_silence(snapshot, tcp, report).await;
        }
    }

    async fn after_silence(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        match look(&tcp, self.local.port(), HELLO).await {
            Ok(Arrival::Mesh(wire)) => {
                Box::pin(mesh(self.receiver, snapshot, tcp, wire, report)).await;
            }
            Ok(Arrival::Plaintext) => self.spoken(snapshot, tcp, report).await,
            Ok(Arrival::Silent) => {
                report.verdict.reason = Some("the client said nothing".into());
                sock::reset(tcp);
            }
            Err(error) => report.verdict.reason = Some(error.to_string().into()),
        }
    }

    async fn connect(
        &self,
        snapshot: &Snapshot,
        report: &mut TcpReport,
    ) -> Result<TcpStream, Verdict> {
        reach::authorize(&self.inbound, &self.facts()).map_err(reach::Failure::verdict)?;
        let (shared, pod) = (&self.receiver.shared, &self.receiver.pod.id);
        shared
            .guard(&report.entry, snapshot, pod, self.facts())
            .map_err(reach::Failure::verdict)?;
        report.upstream = Some(self.local);
        let timeout = snapshot.mesh.connect_timeout;
        let client = ClientAddr(self.peer);
        let app = reach::deliver(&self.receiver.pod, client, self.local, timeout)
            .await
            .map_err(reach::Failure::verdict)?;
        report.upstream_local = app.local_addr().ok();
        report.entry.set(State::Bytes, Some(self.local));
        Ok(app)
    }

    async fn bytes(self, snapshot: &Snapshot, tcp: TcpStream, first: Bytes, mut report: TcpReport) {
        match self.connect(snapshot, &mut report).await {
            Ok(app) => {
                report.open();
                let app = Upstream::Tcp(app);
                report.verdict = l4::relay(tcp, app, first, Bytes::new(), &report.entry).await;
            }
            Err(verdict) => {
                report.verdict = verdict;
                sock::reset(tcp);
            }
        }
    }
}

impl InboundHandler for Receiver {
    async fn tunnel(&self, stream: InboundStream, offer: TunnelOffer) {
        let snapshot = self.shared.snapshots.load();
        let inbound = snapshot.inbound.get(&self.pod.id).cloned();
        let (client, dst) = (stream.client, stream.dst);
        let peer = &stream.peer.identity;
        let port = dst.port();
        let parties = self.parties(&snapshot, inbound.as_deref(), client.0, Some(peer), port);
        let live = &self.shared.live;
        let entry = live.add(Direction::Inbound, &self.pod.id, client.0, dst.0, Some(peer.clone()));
        let mut report = TcpReport::new(&self.shared, entry, parties, client.0, dst.0);
        let Ok(_admission) = self.shared.admit(&self.pod) else {
            report.verdict = Verdict::refused(Refusal::Overload, OVER_BOUND);
            return offer.refuse(Refusal::Overload);
        };
        let Some(inbound) = inbound else {
            report.verdict = Verdict::refused(Refusal::NoRoute, "the pod is not enrolled");
            return offer.refuse(Refusal::NoRoute);
        };
        let facts = Facts { peer: Some(peer.clone()), source: client.0, destination: dst.0 };
        let protocol = inbound.port(port).map_or(AppProtocol::Detect, |p| p.protocol);
        // A Fairlead node has looked at the bytes already: HTTP would have come as requests.
        let sniffs = protocol.needs_detection()
            && (stream.peer.wire == Wire::Hbone || inbound.authz.needs_http(port));
        let mut first = BytesMut::new();
        let mut stage = Stage::Offered(offer);
        if protocol.is_http() || sniffs {
            let Stage::Offered(offer) = stage else { return };
            let Ok(mut tunnel) = offer.accept() else { return };
            let opening = opening_of(&mut tunnel, &mut first, protocol).await;
            if opening != Opening::Bytes && opening != Opening::Silent {
                report.becomes_http();
                let http2 = opening == Opening::Http2;
                let io = Prefixed::new(first.freeze(), tunnel);
                let arrival = arrive::Arrival { receiver: self.clone(), client, dst, facts };
                let served = server::serve_inbound(arrival, io, http2, &report.entry);
                let broken = Box::pin(served).await;
                return report.broke_protocol(broken);
            }
            stage = Stage::Accepted(tunnel);
        }
        report.upstream = Some(dst.0);
        let connecting = async {
            reach::authorize(&inbound, &facts)?;
            self.shared.guard(&report.entry, &snapshot, &self.pod.id, facts)?;
            reach::deliver(&self.pod, client, dst.0, snapshot.mesh.connect_timeout).await
        };
        let connected = match &mut stage {
            Stage::Accepted(_) => connecting.await,
            Stage::Offered(offer) => tokio::select! {
                connected = connecting => connected,
                () = offer.abandoned() => {
                    report.verdict.flags = ResponseFlags::DownstreamConnectionTermination;
                    return;
                }
            },
        };
        let mut app = match connected {
            Ok(app) => app,
            Err(failure) => {
                stage.refuse(failure.class);
                report.verdict = failure.verdict();
                return;
            }
        };
        let Some(tunnel) = stage.accept() else { return };
        report.upstream_local = app.local_addr().ok();
        report.entry.set(State::Bytes, Some(dst.0));
        report.open();
        if !first.is_empty() {
            if let Err(error) = app.write_all(&first).await {
                report.verdict.reason = Some(error.to_string().into());
                return tunnel.reset();
            }
            let n = first.len() as u64;
            report.entry.transferred.sent.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        }
        report.verdict = l4::relay_tunnel(app, tunnel, Bytes::new(), &report.entry, true).await;
    }

    async fn request(
        &self,
        stream: InboundStream,
        request: http::Request<crate::body::Body>,
    ) -> http::Response<crate::body::Body> {
        arrive::Arrival::of(self, &stream).request(request).await
    }

    async fn upgrade(
        &self,
        stream: InboundStream,
        request: http::Request<()>,
        offer: UpgradeOffer,
    ) {
        arrive::Arrival::of(self, &stream).upgrade(request, offer).await;
    }

    fn refused(&self, peer: &Peer, reason: &str) {
        tracing::info!(peer = %peer.identity, from = %peer.addr, pod = %self.pod.id, reason,
            "stream refused");
    }
}

/// A tunnel before it carries bytes. It is accepted once the application has accepted, so that
/// the other node may try another endpoint; where its first bytes decide, they come first.
enum Stage {
    Offered(TunnelOffer),
    Accepted(transport::Tunnel),
}

impl Stage {
    fn accept(self) -> Option<transport::Tunnel> {
        match self {
            Self::Accepted(tunnel) => Some(tunnel),
            Self::Offered(offer) => offer.accept().ok(),
        }
    }

    fn refuse(self, class: Refusal) {
        match self {
            Self::Accepted(tunnel) => tunnel.reset(),
            Self::Offered(offer) => offer.refuse(class),
        }
    }
}

/// What a tunnel's client begins with. On a port that is declared HTTP there is no hurry.
async fn opening_of(
    tunnel: &mut transport::Tunnel,
    first: &mut BytesMut,
    protocol: AppProtocol,
) -> Opening {
    const READ: usize = 4 * 1024;
    let declared = protocol.is_http();
    loop {
        match sniff(first) {
            Sniff::Http2 => return Opening::Http2,
            Sniff::Http1 => return Opening::Http1,
            Sniff::Tls | Sniff::Other if declared => return Opening::Http1,
            Sniff::Tls | Sniff::Other => return Opening::Bytes,
            Sniff::NeedMore => {}
        }
        let wait = match (declared, first.is_empty()) {
            (true, true) => None,
            (false, true) => Some(SILENCE),
            (_, false) => Some(Duration::from_secs(1)),
        };
        first.reserve(READ);
        let read = tunnel.read_buf(first);
        let read = match wait {
            Some(wait) => tokio::time::timeout(wait, read).await,
            None => Ok(read.await),
        };
        match read {
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) if declared => return Opening::Http1,
            Ok(_) => return Opening::Bytes,
            Err(_) if declared => return Opening::Http1,
            Err(_) => return Opening::Silent,
        }
    }
}

/// What a connection costs while it is carried, in the task that carries it.
#[cfg(test)]
pub(crate) fn future_size(shared: Arc<Shared>, pod: Arc<Pod>, tcp: TcpStream) -> usize {
    std::mem::size_of_val(&serve(shared, pod, tcp))
}
