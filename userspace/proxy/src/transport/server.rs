//! Sessions that other nodes opened to a pod of this node: handshake, rounds, an orderly end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use fairlead_identity::{PeerSvid, Wire, fingerprint, negotiated_wire};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use parking_lot::Mutex;
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::dispatch::{classify, run};
use super::drive::{Keepalive, Turn};
use super::error::{HANDSHAKE, TransportError};
use super::inbound::{Inbound, InboundHandler, Peer};
use super::limits;
use super::outbound::Transport;
use super::round::{Inner, Round, RoundIo};
use super::session::{handshake_error, peer_leaf, peer_svid, tune};

impl Transport {
    /// Serves one accepted connection: handshake, then every stream to `handler`, until the
    /// session ends.
    ///
    /// # Errors
    /// Why there was no session, or how it was lost; a session that the peer ended in an orderly
    /// way is `Ok`.
    pub async fn serve<H: InboundHandler>(
        &self,
        tcp: TcpStream,
        inbound: &Inbound,
        handler: Arc<H>,
    ) -> Result<(), TransportError> {
        let mut draining = self.draining.subscribe();
        if *draining.borrow() {
            return Err(TransportError::Draining);
        }
        if self.inbound_sessions() >= limits::INBOUND_SESSIONS {
            return Err(TransportError::Overload("too many inbound sessions"));
        }
        let session = self.accept_session(tcp, inbound);
        let session = match timeout(limits::HANDSHAKE_TIMEOUT, session).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(TransportError::Timeout {
                    what: HANDSHAKE,
                    limit: limits::HANDSHAKE_TIMEOUT,
                });
            }
        };
        self.inbound.fetch_add(1, Ordering::AcqRel);
        let _counted = Counted(self);
        let mut session = ServerDriver {
            connection: session.connection,
            round: session.round,
            peer: session.peer,
            pod_ips: inbound.pod_ips.clone(),
            handler,
            streams: Arc::default(),
            turn: Turn::Collect,
        };
        let mut keepalive = Keepalive::new(session.connection.ping_pong());
        let mut expiry = pin!(tokio::time::sleep_until(deadline(session.peer.not_after)));
        let mut draining = pin!(draining.wait_for(|drain| *drain));
        let mut leaving = false;
        poll_fn(|cx| {
            if !leaving
                && (expiry.as_mut().poll(cx).is_ready() || draining.as_mut().poll(cx).is_ready())
            {
                leaving = true;
                // GOAWAY: no new streams, those that are open end in their own time.
                session.connection.graceful_shutdown();
            }
            if let Poll::Ready(result) = session.poll(cx) {
                return Poll::Ready(result);
            }
            keepalive.poll(cx, &session.round).map(Err)
        })
        .await
    }

    async fn accept_session(
        &self,
        tcp: TcpStream,
        inbound: &Inbound,
    ) -> Result<ServerSession, TransportError> {
        let addr = |r: std::io::Result<SocketAddr>| {
            r.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
                .map_err(|e| TransportError::SessionLost(e.to_string()))
        };
        let (from, local) = (addr(tcp.peer_addr())?, addr(tcp.local_addr())?);
        let _handshake = self.handshakes.begin(from.ip())?;
        let handshake = |reason: String| TransportError::Handshake { to: from, reason };
        tune(&tcp).map_err(|e| handshake(e.to_string()))?;
        let certificate = self
            .identity
            .certificate_within(&inbound.identity, limits::INBOUND_CERTIFICATE_TIMEOUT)
            .await?;
        let tls = ServerConnection::new(certificate.server_config(inbound.wire))
            .map_err(|e| handshake(e.to_string()))?;
        let mut inner = Inner::new(tcp, tls.into());
        poll_fn(|cx| inner.poll_handshake(cx))
            .await
            .map_err(|e| handshake_error(from, inner.tls_error(), &e))?;
        if negotiated_wire(inner.tls().alpn_protocol()) != Some(inbound.wire) {
            return Err(handshake("the peer did not offer the protocol (ALPN)".into()));
        }
        let PeerSvid { id, not_after, .. } = peer_svid(&inner).map_err(handshake)?;
        let peer = Peer {
            identity: id,
            addr: from,
            local,
            wire: inbound.wire,
            fingerprint: fingerprint(peer_leaf(&inner).map_err(handshake)?),
            not_after: not_after.min(certificate.not_after()),
        };
        let (round, io) = inner.split();
        // The preface is small, and the driver's first round sends what the framing answers; but
        // this handshake future is polled without it, so its flushes have to reach the socket.
        let mut preface = pin!(builder(inbound.wire).handshake::<_, Bytes>(io));
        let connection = poll_fn(|cx| {
            let ready = preface.as_mut().poll(cx);
            match round.poll_flush(cx) {
                Poll::Ready(Err(e)) => Poll::Ready(Err(handshake(e.to_string()))),
                _ => ready.map(|r| {
                    r.map_err(|e| match round.tls_error() {
                        Some(tls) => handshake_error(
                            from,
                            Some(&tls),
                            &std::io::ErrorKind::InvalidData.into(),
                        ),
                        None => handshake(e.to_string()),
                    })
                }),
            }
        })
        .await?;
        Ok(ServerSession { connection, round, peer: Arc::new(peer) })
    }
}

/// Handshakes under way, in all and by source. Touched twice per session.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Running>);

#[derive(Default)]
struct Running {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

impl Handshakes {
    fn begin(&self, source: IpAddr) -> Result<Handshake<'_>, TransportError> {
        let mut running = self.0.lock();
        if running.all >= limits::HANDSHAKES {
            return Err(TransportError::Overload("too many TLS handshakes at the same time"));
        }
        let own = running.by_source.entry(source).or_default();
        if *own >= limits::HANDSHAKES_PER_SOURCE {
            return Err(TransportError::Overload("too many TLS handshakes from one address"));
        }
        *own += 1;
        running.all += 1;
        Ok(Handshake { all: self, source })
    }
}

/// One of them; over when dropped.
struct Handshake<'a> {
    all: &'a Handshakes,
    source: IpAddr,
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut running = self.all.0.lock();
        running.all -= 1;
        if let Entry::Occupied(mut own) = running.by_source.entry(self.source) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

struct ServerSession {
    connection: Connection<RoundIo, Bytes>,
    round: Round,
    peer: Arc<Peer>,
}

struct Counted<'a>(&'a Transport);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.inbound.fetch_sub(1, Ordering::AcqRel);
        self.0.inbound_ended.notify_waiters();
    }
}

fn deadline(at: SystemTime) -> Instant {
    Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default()
}

fn builder(wire: Wire) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::SESSION_WINDOW)
        .max_frame_size(limits::FRAME_SIZE)
        .max_header_list_size(limits::HEADER_LIST)
        .header_table_size(limits::HEADER_TABLE)
        .max_concurrent_streams(limits::STREAMS_PER_SESSION)
        .max_concurrent_reset_streams(limits::REMEMBERED_RESETS)
        .reset_stream_duration(limits::REMEMBER_RESET)
        .max_local_error_reset_streams(Some(limits::ERROR_RESETS))
        .max_pending_accept_reset_streams(limits::PENDING_RESETS)
        .max_send_buffer_size(limits::STREAM_SEND_BUFFER)
        .data_frame_budget(limits::SMALL_FRAME_BUDGET);
    if wire == Wire::Native {
        builder.enable_connect_protocol();
    }
    builder
}

struct ServerDriver<H> {
    connection: Connection<RoundIo, Bytes>,
    round: Round,
    peer: Arc<Peer>,
    pod_ips: Arc<[IpAddr]>,
    handler: Arc<H>,
    streams: Arc<AtomicUsize>,
    turn: Turn,
}

/// Counts a stream of a session as long as its task runs.
struct CountedStream(Arc<AtomicUsize>);

impl CountedStream {
    fn new(streams: Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams)
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<H: InboundHandler> ServerDriver<H> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if self.turn.poll(cx, self.streams.load(Ordering::Relaxed)).is_pending() {
            return Poll::Pending;
        }
        let ended = loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    if self.streams.load(Ordering::Relaxed) >= limits::TASKS_PER_SESSION {
                        // The peer resets streams faster than their tasks end.
                        self.handler.refused(&self.peer, "too many streams opened and reset");
                        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    } else {
                        self.dispatch(request, respond);
                    }
                }
                Poll::Ready(Some(Err(e))) => break Some(Err(e)),
                Poll::Ready(None) => break Some(Ok(())),
                Poll::Pending => break None,
            }
        };
        let flushed = self.round.poll_flush(cx);
        match ended {
            Some(Ok(())) => Poll::Ready(Ok(())),
            // This side's last word meets a closed socket where the peer was quicker.
            Some(Err(e)) if e.is_io() && self.round.left_orderly(cx) => Poll::Ready(Ok(())),
            Some(Err(e)) => Poll::Ready(match self.round.tls_error() {
                Some(tls) => Err(TransportError::SessionLost(fairlead_identity::explain(&tls))),
                None => Err(e.into()),
            }),
            None => match flushed {
                Poll::Ready(Err(e)) => Poll::Ready(self.broken(cx, &e)),
                _ => Poll::Pending,
            },
        }
    }

    /// Nothing can be written any more. What the peer has sent before says whether it has left in
    /// an orderly way.
    fn broken(
        &mut self,
        cx: &mut Context<'_>,
        error: &std::io::Error,
    ) -> Result<(), TransportError> {
        // Streams that it has opened and left are dropped: nobody waits for them.
        while let Poll::Ready(Some(Ok(_))) = self.connection.poll_accept(cx) {}
        if self.round.left_orderly(cx) {
            return Ok(());
        }
        Err(TransportError::SessionLost(error.to_string()))
    }

    fn dispatch(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        match classify(&self.peer, &self.pod_ips, request) {
            Ok(work) => {
                let counted = CountedStream::new(self.streams.clone());
                let handler = self.handler.clone();
                tokio::spawn(async move {
                    run(handler, work, respond).await;
                    drop(counted);
                });
            }
            Err((status, reason)) => {
                self.handler.refused(&self.peer, reason);
                let mut response = Response::new(());
                *response.status_mut() = status;
                let _ = respond.send_response(response, true);
            }
        }
    }
}
