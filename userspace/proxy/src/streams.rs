//! Streams that other nodes opened to a pod of this node: connections and requests under the
//! verified identity of their source.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_types::{AppProtocol, Refusal, ResponseFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::detect::{Sniff, sniff};
use crate::first::{HALF_LINE, Opening, SILENCE};
use crate::http::{arrive, server};
use crate::inbound::Receiver;
use crate::l4;
use crate::live::{Direction, Facts, Guarded, State};
use crate::outbound::OVER_BOUND;
use crate::reach;
use crate::report::{TcpReport, Verdict};
use crate::transport::{
    self, InboundHandler, InboundStream, Peer, TunnelOffer, UpgradeOffer, Wire,
};

/// What one read of a tunnel's first bytes asks for.
const READ: usize = 4 * 1024;

impl InboundHandler for Receiver {
    async fn tunnel(&self, stream: InboundStream, offer: TunnelOffer) {
        let snapshot = self.shared.snapshots.load();
        let inbound = self.pod.inbound(&snapshot).cloned();
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
        let facts = Facts::of(&stream);
        let protocol = inbound.port(port).map_or(AppProtocol::Detect, |p| p.protocol);
        // A Fairlead node has looked at the bytes already: HTTP would have come as requests.
        let sniffs = protocol.needs_detection()
            && (stream.peer.wire == Wire::Hbone || inbound.authz.needs_http(port));
        let mut first = BytesMut::new();
        let mut stage = Stage::Offered(offer);
        let mut silent = false;
        if protocol.is_http() || sniffs {
            let Stage::Offered(offer) = stage else { return };
            let Ok(mut tunnel) = offer.accept() else { return };
            // HTTP may be allowed to some requests where a connection is not to all: then the
            // server cannot be given the word, and the client has to speak.
            let must_speak = protocol.is_http()
                || inbound.authz.needs_http(port) && reach::authorize(&inbound, &facts).is_err();
            let silence = (!must_speak).then_some(SILENCE);
            let opening = opening_of(&mut tunnel, &mut first, protocol, silence);
            let opening = tokio::select! {
                opening = opening => opening,
                cut = report.entry.until_cut() => {
                    report.verdict.reason = Some(cut.to_string().into());
                    return tunnel.reset();
                }
            };
            if let Opening::Http1 | Opening::Http2 = opening {
                let http2 = opening == Opening::Http2;
                return self.http(stream, tunnel, first, http2, report).await;
            }
            silent = opening == Opening::Silent;
            stage = Stage::Accepted(tunnel);
        }
        report.name_application(dst.0);
        let connecting = async {
            reach::authorize(&inbound, &facts)?;
            let guarded = Guarded::connection(&self.pod.id, facts);
            self.shared.guard(&report.entry, &snapshot, guarded)?;
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
        let Some(mut tunnel) = stage.accept() else { return };
        report.upstream_local = app.local_addr().ok();
        report.entry.set(State::Bytes, Some(dst.0));
        if silent {
            let spoke = tokio::select! {
                spoke = client_first(&app, &mut tunnel, &mut first, protocol) => spoke,
                cut = report.entry.until_cut() => Err(std::io::Error::other(cut.to_string())),
            };
            match spoke {
                // It was not a connection that the application was wanted for.
                Ok(Opening::Http1) => return self.http(stream, tunnel, first, false, report).await,
                Ok(Opening::Http2) => return self.http(stream, tunnel, first, true, report).await,
                Ok(Opening::Bytes | Opening::Silent) => {}
                Err(error) => {
                    report.verdict.reason = Some(error.to_string().into());
                    return tunnel.reset();
                }
            }
        }
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

impl Receiver {
    /// Serves the requests in a tunnel.
    async fn http(
        &self,
        stream: InboundStream,
        tunnel: transport::Tunnel,
        first: BytesMut,
        http2: bool,
        mut report: TcpReport,
    ) {
        report.becomes_http();
        report.entry.unguard();
        // A client's own connection: what nodes tell each other is not for it.
        let arrival = arrive::Arrival { native: false, ..arrive::Arrival::of(self, &stream) };
        let served = server::serve_inbound(arrival, tunnel, first.freeze(), http2, &report.entry);
        let broken = Box::pin(served).await;
        report.broke_protocol(broken);
    }
}

/// Waits for the first byte of either side. [`Opening::Silent`]: the application spoke first.
async fn client_first(
    app: &TcpStream,
    tunnel: &mut transport::Tunnel,
    first: &mut BytesMut,
    protocol: AppProtocol,
) -> std::io::Result<Opening> {
    first.reserve(READ);
    let mut byte = [0];
    tokio::select! {
        biased;
        spoke = app.peek(&mut byte) => {
            spoke?;
            return Ok(Opening::Silent);
        }
        spoke = tunnel.read_buf(first) => { spoke?; }
    }
    Ok(if first.is_empty() {
        Opening::Bytes
    } else {
        opening_of(tunnel, first, protocol, None).await
    })
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

/// What a tunnel's client begins with; `silence` is how long to wait for its first byte, `None` is
/// for ever. On a port that is declared HTTP, whatever comes is for the HTTP parser.
async fn opening_of(
    tunnel: &mut transport::Tunnel,
    first: &mut BytesMut,
    protocol: AppProtocol,
    silence: Option<Duration>,
) -> Opening {
    let declared = protocol.is_http();
    let otherwise = if declared { Opening::Http1 } else { Opening::Bytes };
    let mut half_line = None;
    loop {
        match sniff(first) {
            Sniff::Http2 => return Opening::Http2,
            Sniff::Http1 => return Opening::Http1,
            Sniff::Tls | Sniff::Other => return otherwise,
            Sniff::NeedMore => {}
        }
        // In all, however often a little more comes.
        let until = if first.is_empty() {
            silence.map(|silence| Instant::now() + silence)
        } else {
            Some(*half_line.get_or_insert_with(|| Instant::now() + HALF_LINE))
        };
        first.reserve(READ);
        let read = tunnel.read_buf(first);
        let read = match until {
            Some(until) => timeout_at(until, read).await,
            None => Ok(read.await),
        };
        match read {
            Ok(Ok(n)) if n > 0 => {}
            Err(_) if first.is_empty() => return Opening::Silent,
            _ => return otherwise,
        }
    }
}
