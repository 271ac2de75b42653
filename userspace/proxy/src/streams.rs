//! Streams that other nodes opened to a pod of this node: connections and requests under the
//! verified identity of their source.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_types::{AppProtocol, Refusal, ResponseFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::detect::{Sniff, sniff};
use crate::first::{Opening, SILENCE};
use crate::http::{arrive, server};
use crate::inbound::Receiver;
use crate::l4;
use crate::live::{Direction, Facts, Guarded, State};
use crate::outbound::OVER_BOUND;
use crate::reach;
use crate::report::{TcpReport, Verdict};
use crate::sock::Prefixed;
use crate::transport::{
    self, InboundHandler, InboundStream, Peer, TunnelOffer, UpgradeOffer, Wire,
};

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
        let facts = Facts::of(&stream);
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
