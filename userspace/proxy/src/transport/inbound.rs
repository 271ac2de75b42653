//! The inbound side: sessions that other nodes opened to a pod of this node.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use fairlead_identity::{PeerSvid, Wire, negotiated_wire};
use fairlead_types::{ClientAddr, OriginalDst, Refusal, SpiffeId};
use h2::ext::Protocol;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::error::{HANDSHAKE, TransportError};
use super::outbound::{Transport, upload_body};
use super::round::{Inner, Round, RoundIo};
use super::session::{Keepalive, Turn, handshake_error, peer_svid, tune};
use super::stream::{StreamBody, Tunnel};
use super::{limits, meta};
use crate::body::Body;

/// The pod that an inbound connection is for.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// The wire form that its ClientHello offers.
    pub wire: Wire,
    /// The pod's identity.
    pub identity: SpiffeId,
    /// The pod's addresses.
    pub pod_ips: Arc<[IpAddr]>,
}

/// Who is at the other end of a session.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The identity that it has proven.
    pub identity: SpiffeId,
    /// The address that the session comes from.
    pub addr: SocketAddr,
    /// The address that it came to.
    pub local: SocketAddr,
    /// The wire form.
    pub wire: Wire,
    /// When its certificate ends.
    pub not_after: SystemTime,
}

/// One stream of a session, checked: the destination is this pod, the client is who may be
/// claimed.
#[derive(Clone, Debug)]
pub struct InboundStream {
    /// The session's other end.
    pub peer: Arc<Peer>,
    /// The application socket that began the connection.
    pub client: ClientAddr,
    /// The address that the application here gets.
    pub dst: OriginalDst,
    /// Istio's description of the source workload. A claim, for telemetry alone.
    pub baggage: Option<HeaderValue>,
    /// The service that the client asked for. A claim, for telemetry alone.
    pub service: Option<HeaderValue>,
}

/// What becomes of inbound streams. Each call runs in a task of its own.
pub trait InboundHandler: Send + Sync + 'static {
    /// A connection: accept it once the application has, or refuse it.
    fn tunnel(&self, stream: InboundStream, offer: TunnelOffer) -> impl Future<Output = ()> + Send;

    /// A parsed request: origin-form URI, `Host`, and the version that the client spoke. The
    /// future is dropped when the client cancels.
    fn request(
        &self,
        stream: InboundStream,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// A request for another protocol: switch once the application has, or decline.
    fn upgrade(
        &self,
        stream: InboundStream,
        request: Request<()>,
        offer: UpgradeOffer,
    ) -> impl Future<Output = ()> + Send;

    /// A stream that was refused before it came to a handler: not for this pod, a false claim,
    /// or malformed.
    fn refused(&self, peer: &Peer, reason: &str);
}

/// A connection that waits for an answer. Dropped without one, its stream is reset.
pub struct TunnelOffer {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    wire: Wire,
}

impl TunnelOffer {
    /// Takes the connection.
    ///
    /// # Errors
    /// The client has given up meanwhile.
    pub fn accept(mut self) -> Result<Tunnel, TransportError> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Tunnel::new(send, self.recv, None))
    }

    /// Refuses the connection.
    pub fn refuse(mut self, refusal: Refusal) {
        let mut response = Response::new(());
        *response.status_mut() = meta::refusal_status(refusal);
        if self.wire == Wire::Native {
            let value = HeaderValue::from_static(refusal.as_str());
            response.headers_mut().insert(meta::REFUSAL, value);
        }
        // Fails only when the client has given up: then it needs no answer.
        let _ = self.respond.send_response(response, true);
    }

    /// Ends when the client has given up before there was an answer.
    pub async fn abandoned(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// A request for another protocol that waits for an answer. Dropped without one, its stream is
/// reset.
pub struct UpgradeOffer {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
}

impl UpgradeOffer {
    /// Switches: `response` is the application's 101 (or 2xx to CONNECT).
    ///
    /// # Errors
    /// The client has given up meanwhile.
    pub fn switch(mut self, response: Response<()>) -> Result<Tunnel, TransportError> {
        let (mut parts, ()) = response.into_parts();
        let status = HeaderValue::from(parts.status.as_u16());
        meta::strip(&mut parts.headers);
        meta::strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(meta::SWITCHED, status);
        parts.status = StatusCode::OK;
        let send = self.respond.send_response(Response::from_parts(parts, ()), false)?;
        Ok(Tunnel::new(send, self.recv, None))
    }

    /// Answers with an ordinary response.
    pub async fn decline(mut self, response: Response<Body>) {
        send_response(&mut self.respond, response).await;
    }
}

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
        let _handshake = self
            .handshakes
            .try_acquire()
            .map_err(|_| TransportError::Overload("too many TLS handshakes at the same time"))?;
        let addr = |r: std::io::Result<SocketAddr>| {
            r.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
                .map_err(|e| TransportError::SessionLost(e.to_string()))
        };
        let (from, local) = (addr(tcp.peer_addr())?, addr(tcp.local_addr())?);
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
            Some(Err(e)) => Poll::Ready(match self.round.tls_error() {
                Some(tls) => Err(TransportError::SessionLost(fairlead_identity::explain(&tls))),
                None => Err(e.into()),
            }),
            None => match flushed {
                Poll::Ready(Err(e)) => Poll::Ready(Err(TransportError::SessionLost(e.to_string()))),
                _ => Poll::Pending,
            },
        }
    }

    fn dispatch(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        match self.classify(request) {
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

    fn classify(&self, request: Request<RecvStream>) -> Result<Work, (StatusCode, &'static str)> {
        let (mut parts, recv) = request.into_parts();
        let wire = self.peer.wire;
        let bad = |reason| (StatusCode::BAD_REQUEST, reason);
        let protocol = parts.extensions.remove::<Protocol>();
        let connect = parts.method == Method::CONNECT;
        let dst = if connect && protocol.is_none() {
            parts.uri.authority().and_then(|a| a.as_str().parse().ok())
        } else if wire == Wire::Native {
            meta::parse_address(&parts.headers, &meta::DST)
        } else {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "HBONE carries CONNECT only"));
        };
        let dst: SocketAddr = dst.ok_or(bad("the destination is not an address"))?;
        let dst = OriginalDst::canonical(dst);
        let (client, service) = match wire {
            Wire::Native => {
                if dst.0 != self.peer.local {
                    return Err(bad("the destination is not the one that the session is for"));
                }
                let client = meta::parse_address(&parts.headers, &meta::CLIENT)
                    .ok_or(bad("fairlead-client is missing or malformed"))?;
                let client = ClientAddr::canonical(client);
                if client.ip() != self.peer.addr.ip() {
                    return Err(bad("the claimed client is not where the session comes from"));
                }
                (client, parts.headers.get(meta::SERVICE).cloned())
            }
            Wire::Hbone => {
                if !self.pod_ips.contains(&dst.ip()) {
                    return Err(bad("the destination is not an address of this pod"));
                }
                let (claimed, service) = meta::parse_forwarded(&parts.headers);
                // Policy sees where the session comes from; of the claim only the port is
                // taken, and only when it is about the same address.
                let port = claimed
                    .filter(|c| c.ip().to_canonical() == self.peer.addr.ip())
                    .map_or(0, |c| c.port());
                (ClientAddr(SocketAddr::new(self.peer.addr.ip(), port)), service)
            }
        };
        let stream = InboundStream {
            peer: self.peer.clone(),
            client,
            dst,
            baggage: connect.then(|| parts.headers.get(meta::BAGGAGE).cloned()).flatten(),
            service,
        };
        let kind = match protocol {
            Some(protocol) => {
                meta::incoming_upgrade(&mut parts, protocol.as_str()).map_err(bad)?;
                Kind::Upgrade(Request::from_parts(parts, ()), recv)
            }
            None if connect => Kind::Tunnel(recv, wire),
            None => {
                meta::incoming(&mut parts).map_err(bad)?;
                Kind::Request(Request::from_parts(parts, recv))
            }
        };
        Ok(Work { stream, kind })
    }
}

struct Work {
    stream: InboundStream,
    kind: Kind,
}

enum Kind {
    Tunnel(RecvStream, Wire),
    Upgrade(Request<()>, RecvStream),
    Request(Request<RecvStream>),
}

async fn run<H: InboundHandler>(handler: Arc<H>, work: Work, mut respond: SendResponse<Bytes>) {
    let Work { stream, kind } = work;
    match kind {
        Kind::Tunnel(recv, wire) => {
            handler.tunnel(stream, TunnelOffer { respond, recv, wire }).await;
        }
        Kind::Upgrade(request, recv) => {
            handler.upgrade(stream, request, UpgradeOffer { respond, recv }).await;
        }
        Kind::Request(request) => {
            let (parts, recv) = request.into_parts();
            let (wanted, body_wanted) = oneshot::channel();
            let expects = meta::expects_continue(&parts.headers);
            let body = if recv.is_end_stream() {
                Body::Empty
            } else if expects {
                Body::Stream(StreamBody::new(recv, None).with_wanted(wanted))
            } else {
                Body::Stream(StreamBody::new(recv, None))
            };
            let answer = handler.request(stream, Request::from_parts(parts, body));
            let mut answer = pin!(answer);
            let mut body_wanted = pin!(body_wanted);
            let mut listening = expects;
            let response = poll_fn(|cx| {
                if let Poll::Ready(response) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(response));
                }
                if listening && let Poll::Ready(asked) = body_wanted.as_mut().poll(cx) {
                    listening = false;
                    if asked.is_ok() {
                        let mut go = Response::new(());
                        *go.status_mut() = StatusCode::CONTINUE;
                        let _ = respond.send_informational(go);
                    }
                }
                respond.poll_reset(cx).map(|_| None)
            })
            .await;
            match response {
                Some(response) => send_response(&mut respond, response).await,
                None => tracing::debug!("the client cancelled the request"),
            }
        }
    }
}

async fn send_response(respond: &mut SendResponse<Bytes>, response: Response<Body>) {
    let (mut parts, body) = response.into_parts();
    meta::strip(&mut parts.headers);
    meta::strip_hop_by_hop(&mut parts.headers);
    let ends = http_body::Body::is_end_stream(&body);
    match respond.send_response(Response::from_parts(parts, ()), ends) {
        Ok(_) if ends => {}
        Ok(send) => upload_body(send, body, None).await,
        // The client has given up, or the application's headers cannot be sent.
        Err(error) => {
            tracing::debug!(%error, "response not sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
