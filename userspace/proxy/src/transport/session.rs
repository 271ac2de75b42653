//! A session to a peer: TLS with HTTP/2 framing in it, driven by one task, carrying many streams
//! of one identity.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use fairlead_identity::{PeerRefusal, PeerSvid, WorkloadCertificate, explain, negotiated_wire};
use h2::client::{Connection, SendRequest};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConnection, OtherError};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use super::drive::{Keepalive, Turn};
use super::error::{CONNECTION, HANDSHAKE, TransportError};
use super::limits;
use super::round::{Inner, Round, RoundIo};
use super::{Target, Wire};

/// A session as the pool holds it. Its connection closes when the last reference is gone.
pub(super) struct Session {
    send: SendRequest<Bytes>,
    state: Arc<SessionState>,
    /// This side's address.
    local: SocketAddr,
    /// No new streams after this moment: one of the certificates is about to end.
    retire_at: Instant,
}

/// What the session's driver and its streams share.
pub(super) struct SessionState {
    active: AtomicUsize,
    started: AtomicU64,
    /// How many streams the peer takes at once.
    allowed: AtomicUsize,
    dead: AtomicBool,
    /// The peer has said GOAWAY: what is open goes on, nothing new starts.
    leaving: AtomicBool,
    /// Streams that move much at once; see [`Place::turn_bulk`].
    bulk: AtomicUsize,
    why_dead: Mutex<Option<String>>,
    idle_since: Mutex<Instant>,
    /// Told when a place on any session of the destination becomes free, and when one of them ends
    /// or takes no more streams.
    freed: Arc<Notify>,
}

/// A stream's place on a session; free again when dropped.
pub(super) struct Place {
    session: Arc<Session>,
    bulk: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = &self.session.state;
        if self.bulk {
            state.bulk.fetch_sub(1, Ordering::AcqRel);
        }
        if state.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            *state.idle_since.lock() = Instant::now();
        }
        state.freed.notify_one();
    }
}

impl Place {
    /// A handle for starting the stream.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.session.send.clone()
    }

    /// This side's address of the session.
    pub(super) fn local(&self) -> SocketAddr {
        self.session.local
    }

    /// The session takes no stream after this one; streams that are open go on.
    pub(super) fn leave(&self) {
        self.session.leave();
    }

    /// The stream moves much at once. From now on new streams go elsewhere, so that its bytes do
    /// not stand before theirs in every round.
    pub(super) fn turn_bulk(&mut self) {
        if !self.bulk {
            self.bulk = true;
            self.session.state.bulk.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Why the session has ended, if it has; better than what a single stream was told.
    pub(super) fn why(&self, error: TransportError) -> TransportError {
        match (&error, &*self.session.state.why_dead.lock()) {
            (TransportError::SessionLost(_), Some(why)) => TransportError::SessionLost(why.clone()),
            _ => error,
        }
    }
}

impl Session {
    /// Whether new streams may start here.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        !self.state.dead.load(Ordering::Acquire)
            && !self.state.leaving.load(Ordering::Acquire)
            && now < self.retire_at
            && self.state.started.load(Ordering::Relaxed) < limits::STREAMS_IN_LIFETIME
    }

    /// The session takes no new stream; those that are open go on.
    pub(super) fn leave(&self) {
        self.state.leaving.store(true, Ordering::Release);
        // There may be another one instead.
        self.state.freed.notify_waiters();
    }

    /// Whether nothing has used it for `limits::IDLE_TIMEOUT`.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.state.active.load(Ordering::Acquire) == 0
            && now.duration_since(*self.state.idle_since.lock()) >= limits::IDLE_TIMEOUT
    }

    /// Streams at this moment.
    pub(super) fn active(&self) -> usize {
        self.state.active.load(Ordering::Relaxed)
    }

    /// Whether a stream on it moves much at once.
    pub(super) fn is_bulk(&self) -> bool {
        self.state.bulk.load(Ordering::Relaxed) > 0
    }

    /// Takes a place for one more stream.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let state = &self.state;
        let allowed = state.allowed.load(Ordering::Relaxed);
        state
            .active
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < allowed).then_some(n + 1))
            .ok()?;
        state.started.fetch_add(1, Ordering::Relaxed);
        Some(Place { session: self.clone(), bulk: false })
    }
}

/// Connects from the pod's namespace, proves both identities, and waits for the peer's first
/// frame: only then is it known that the peer took this side's certificate.
pub(super) async fn dial(
    target: &Target,
    certificate: &WorkloadCertificate,
    freed: Arc<Notify>,
) -> Result<Arc<Session>, TransportError> {
    let to = target.connect_to();
    let tcp = connect(target).await?;
    match timeout(limits::HANDSHAKE_TIMEOUT, establish(target, certificate, tcp, freed)).await {
        Ok(result) => result,
        Err(_) => {
            Err(TransportError::Timeout { what: HANDSHAKE, limit: limits::HANDSHAKE_TIMEOUT })
        }
    }
    .inspect_err(|error| tracing::debug!(%to, %error, "no session"))
}

async fn connect(target: &Target) -> Result<TcpStream, TransportError> {
    let to = target.connect_to();
    let failed = |e: io::Error| TransportError::Connect { to, error: Arc::new(e) };
    let socket = target.pod().outbound_socket(to).map_err(failed)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let tcp = match timeout(limits::CONNECT_TIMEOUT, socket.connect(to)).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => {
            return Err(TransportError::Timeout {
                what: CONNECTION,
                limit: limits::CONNECT_TIMEOUT,
            });
        }
    };
    tune(&tcp).map_err(failed)?;
    Ok(tcp)
}

/// Socket options of a session.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(limits::TCP_USER_TIMEOUT))
}

async fn establish(
    target: &Target,
    certificate: &WorkloadCertificate,
    tcp: TcpStream,
    freed: Arc<Notify>,
) -> Result<Arc<Session>, TransportError> {
    let to = target.connect_to();
    let handshake = |reason: String| TransportError::Handshake { to, reason };
    let config = certificate
        .client_config(target.wire(), target.expect().clone())
        .map_err(|e| handshake(e.to_string()))?;
    let tls = ClientConnection::new(config, ServerName::IpAddress(to.ip().into()))
        .map_err(|e| handshake(e.to_string()))?;
    let local = tcp.local_addr().map_err(|e| handshake(e.to_string()))?;
    let mut inner = Inner::new(tcp, tls.into());
    std::future::poll_fn(|cx| inner.poll_handshake(cx))
        .await
        .map_err(|e| handshake_error(to, inner.tls_error(), &e))?;
    if negotiated_wire(inner.tls().alpn_protocol()) != Some(target.wire()) {
        return Err(handshake("the peer did not agree on the protocol (ALPN)".into()));
    }
    let peer = peer_svid(&inner).map_err(handshake)?;
    let retire_at = retirement(certificate.not_after().min(peer.not_after));

    let (round, io) = inner.split();
    let (send, connection) = builder(target.wire())
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|e| handshake(e.to_string()))?;
    let state = Arc::new(SessionState {
        active: AtomicUsize::new(0),
        started: AtomicU64::new(0),
        allowed: AtomicUsize::new(limits::STREAMS_PER_SESSION as usize),
        dead: AtomicBool::new(false),
        leaving: AtomicBool::new(false),
        bulk: AtomicUsize::new(0),
        why_dead: Mutex::new(None),
        idle_since: Mutex::new(Instant::now()),
        freed,
    });
    let (confirmed, confirmation) = oneshot::channel();
    let driver = ClientDriver {
        connection,
        round,
        state: state.clone(),
        confirmed: Some(confirmed),
        turn: Turn::Collect,
    };
    tokio::spawn(driver.run(to));
    match confirmation.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(handshake("the session ended before its first frame".into())),
    }
    tracing::debug!(%to, wire = ?target.wire(), source = %target.source(), peer = %peer.id, "session opened");
    Ok(Arc::new(Session { send, state, local, retire_at }))
}

/// Who the peer is, from the certificate that the handshake verified.
pub(super) fn peer_svid(inner: &Inner) -> Result<PeerSvid, String> {
    PeerSvid::from_der(peer_leaf(inner)?).map_err(|e| e.to_string())
}

/// The peer's certificate, which the handshake verified.
pub(super) fn peer_leaf(inner: &Inner) -> Result<&[u8], String> {
    let leaf = inner.tls().peer_certificates().and_then(|chain| chain.first());
    Ok(leaf.ok_or("the peer presented no certificate")?)
}

/// A session takes no new streams in the last fifth of the time that its shorter-lived
/// certificate has left; streams that are open then end in their own time.
fn retirement(not_after: SystemTime) -> Instant {
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now() + left.mul_f64(0.8)
}

/// A handshake failure by its cause.
pub(super) fn handshake_error(
    to: SocketAddr,
    tls: Option<&rustls::Error>,
    io: &io::Error,
) -> TransportError {
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
            match inner.downcast_ref::<PeerRefusal>() {
                Some(refusal) => TransportError::Peer { to, refusal: refusal.clone() },
                None => TransportError::Handshake { to, reason: inner.to_string() },
            }
        }
        Some(error) => TransportError::Handshake { to, reason: explain(error) },
        None if io.kind() == io::ErrorKind::UnexpectedEof => TransportError::Handshake {
            to,
            reason: "the peer closed the connection during the handshake".into(),
        },
        None => TransportError::Handshake { to, reason: io.to_string() },
    }
}

fn builder(wire: Wire) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::SESSION_WINDOW)
        .max_frame_size(limits::FRAME_SIZE)
        .max_header_list_size(limits::HEADER_LIST)
        .header_table_size(limits::HEADER_TABLE)
        .max_concurrent_reset_streams(limits::REMEMBERED_RESETS)
        .reset_stream_duration(limits::REMEMBER_RESET)
        .max_local_error_reset_streams(Some(limits::ERROR_RESETS))
        .max_pending_accept_reset_streams(limits::PENDING_RESETS)
        .max_send_buffer_size(limits::STREAM_SEND_BUFFER)
        .data_frame_budget(limits::SMALL_FRAME_BUDGET)
        .enable_push(false);
    if wire == Wire::Native {
        builder.initial_max_send_streams(limits::STREAMS_PER_SESSION as usize);
    }
    builder
}

struct ClientDriver {
    connection: Connection<RoundIo, Bytes>,
    round: Round,
    state: Arc<SessionState>,
    confirmed: Option<oneshot::Sender<Result<(), TransportError>>>,
    turn: Turn,
}

impl ClientDriver {
    async fn run(mut self, to: SocketAddr) {
        let mut keepalive = Keepalive::new(self.connection.ping_pong());
        let ended = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = self.poll(cx) {
                return Poll::Ready(result);
            }
            keepalive.poll(cx, &self.round).map(Err)
        })
        .await;
        let why = match &ended {
            Ok(()) => "the peer closed it".to_owned(),
            Err(e) => e.to_string(),
        };
        self.state.dead.store(true, Ordering::Release);
        *self.state.why_dead.lock() = Some(why);
        self.state.freed.notify_waiters();
        tracing::debug!(%to, ?ended, "session ended");
        if let Some(confirmed) = self.confirmed.take() {
            let error = match (self.round.tls_error(), ended) {
                (Some(tls), _) => {
                    handshake_error(to, Some(&tls), &io::ErrorKind::InvalidData.into())
                }
                (None, Err(error)) => error,
                (None, Ok(())) => TransportError::SessionLost("closed by the peer".into()),
            };
            // Nobody waits any more when the dial has timed out.
            let _ = confirmed.send(Err(error));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if self.turn.poll(cx, self.state.active.load(Ordering::Relaxed)).is_pending() {
            return Poll::Pending;
        }
        let ended = Pin::new(&mut self.connection).poll(cx);
        let flushed = self.round.poll_flush(cx);
        match ended {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(e)) => return Poll::Ready(Err(self.reason(e))),
            Poll::Pending => {}
        }
        if let Poll::Ready(Err(e)) = flushed {
            return Poll::Ready(Err(TransportError::SessionLost(e.to_string())));
        }
        if self.confirmed.is_some() && self.round.received() > 0 {
            let allowed = self.connection.max_concurrent_send_streams();
            self.state
                .allowed
                .store(allowed.min(limits::STREAMS_PER_SESSION as usize), Ordering::Relaxed);
            if let Some(confirmed) = self.confirmed.take() {
                let _ = confirmed.send(Ok(()));
            }
        }
        Poll::Pending
    }

    fn reason(&self, error: h2::Error) -> TransportError {
        match self.round.tls_error() {
            Some(tls) => TransportError::SessionLost(explain(&tls)),
            None if error.is_go_away() && error.is_remote() => {
                TransportError::SessionLost(format!("the peer ended it: {error}"))
            }
            None => error.into(),
        }
    }
}
