//! Sending one request over a connection of a pool, or a new one, and reading the head of its
//! response.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_policy::filter::retry::Outcome;
use fairlead_types::ClientAddr;
use http::header::HeaderMap;
use http::{Request, Response, Version};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::headers;
use super::local_reply::LocalReply;
use super::pool::{Key, Lease, Local, PER_HTTP2, Sender, Via};
use crate::body::Body;
use crate::reach::{self, Caller, Failure};
use crate::state::Pod;
use crate::transport::{StreamMeta, Target, TransportError, Tunnel};

/// A response's headers.
const RESPONSE_HEADERS: usize = 128 * 1024;
/// Credit of a stream of a connection to an application.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Credit of the connection: as much as all the requests together that one takes before another is
/// opened beside it, so that clients which stall never use up what the others need.
const WINDOW: u32 = STREAM_WINDOW * PER_HTTP2 as u32;
/// Connections out of the pool that turn out to be dead before a new one is made.
const STALE_MAX: usize = 4;

/// A try that brought no response.
#[derive(Debug)]
pub(super) struct TryError {
    /// For the retry policy.
    pub(super) outcome: Outcome,
    /// For the client, if there is no further try.
    pub(super) reply: LocalReply,
    /// The connection came from the pool and the other side had closed it: nothing is wrong with
    /// the endpoint.
    pub(super) stale: bool,
    /// The other node has not looked at it: it ends its session, or takes no more on that one.
    /// Nothing is wrong with the endpoint.
    pub(super) unseen: bool,
}

impl TryError {
    /// The destination's node could not connect to the application.
    pub(super) fn undelivered(to: SocketAddr) -> Self {
        let reason = format!("the application at {to} takes no connections");
        let flags = fairlead_types::ResponseFlags::UpstreamConnectionFailure;
        let reply = LocalReply::connect_failure(flags, reason);
        Self::new(Outcome::ConnectFailure, reply)
    }

    /// An answer that no retry changes.
    pub(super) fn last(reply: LocalReply) -> Self {
        Self::new(Outcome::Overflow, reply)
    }

    pub(super) fn new(outcome: Outcome, reply: LocalReply) -> Self {
        Self { outcome, reply, stale: false, unseen: false }
    }
}

impl From<Failure> for TryError {
    fn from(failure: Failure) -> Self {
        let Failure { class, flags, reason, .. } = failure;
        match class {
            fairlead_types::Refusal::Deny => {
                Self::last(LocalReply::denied("rbac_access_denied".into(), reason))
            }
            fairlead_types::Refusal::NoRoute => Self::last(LocalReply::no_cluster(reason)),
            fairlead_types::Refusal::Overload => Self::last(LocalReply::overflow(reason)),
            _ => Self::new(Outcome::ConnectFailure, LocalReply::connect_failure(flags, reason)),
        }
    }
}

impl From<TransportError> for TryError {
    fn from(error: TransportError) -> Self {
        let (flags, unseen) = (error.flags(), error.is_unseen());
        let text = error.to_string();
        let (outcome, reply) = match &error {
            TransportError::Reset { reason: h2::Reason::REFUSED_STREAM, .. } => {
                (Outcome::RefusedStream, LocalReply::upstream_reset(text))
            }
            TransportError::Reset { .. } | TransportError::SessionLost(_) => {
                (Outcome::Reset { request_sent: true }, LocalReply::upstream_reset(text))
            }
            TransportError::Unsent(_) => {
                (Outcome::Reset { request_sent: false }, LocalReply::upstream_reset(text))
            }
            TransportError::Protocol(_) => {
                (Outcome::Reset { request_sent: true }, LocalReply::upstream_protocol(text))
            }
            TransportError::Request(_) => (Outcome::Overflow, LocalReply::bad_request(text)),
            TransportError::Overload(_) | TransportError::Draining => {
                (Outcome::Overflow, LocalReply::overflow(text))
            }
            _ => {
                let failure = Failure::from(error);
                return match failure.class {
                    fairlead_types::Refusal::Deny => failure.into(),
                    _ => Self::new(
                        Outcome::ConnectFailure,
                        LocalReply::connect_failure(flags, failure.reason),
                    ),
                };
            }
        };
        Self { unseen, ..Self::new(outcome, reply) }
    }
}

/// A connection that knows this side's address of it, for the access log.
pub(super) trait Connected {
    /// The address, where there is one.
    fn local(&self) -> Local;
}

impl Connected for TcpStream {
    fn local(&self) -> Local {
        self.local_addr().ok()
    }
}

impl Connected for Tunnel {
    fn local(&self) -> Local {
        self.local_addr()
    }
}

/// A response whose body is still to be read.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// This side's address of the connection that it came over.
    pub(super) local: Local,
    /// What the connection goes back with.
    pub(super) lease: Option<Lease>,
}

impl Answer {
    fn pooled(response: Response<Body>, lease: Lease) -> Self {
        Self { response, local: lease.local(), lease: Some(lease) }
    }
}

/// Sends to the application of `pod`, which sees `client`.
pub(super) async fn deliver(
    pod: &Arc<Pod>,
    client: ClientAddr,
    to: SocketAddr,
    http2: bool,
    timeout: Duration,
    request: Request<Body>,
) -> Result<Answer, TryError> {
    let key = Key { to, via: Via::Delivery(client.ip()), http2 };
    let connect = || reach::deliver(pod, client, to, timeout);
    over_pool(pod, key, connect, request).await
}

/// Sends in plaintext from the caller's namespace.
pub(super) async fn plain(
    caller: &Caller,
    to: SocketAddr,
    http2: bool,
    timeout: Duration,
    request: Request<Body>,
) -> Result<Answer, TryError> {
    let key = Key { to, via: Via::Plain, http2 };
    let connect = || caller.connect_plain(to, timeout);
    over_pool(&caller.pod, key, connect, request).await
}

/// Sends through a tunnel (HBONE carries connections, not requests).
pub(super) async fn tunnelled(
    caller: &Caller,
    target: &Target,
    meta: &StreamMeta,
    http2: bool,
    timeout: Duration,
    request: Request<Body>,
) -> Result<Answer, TryError> {
    let key = Key { to: target.dst(), via: Via::Tunnel(Arc::clone(target.expect())), http2 };
    let connect = || caller.tunnel(target, meta, timeout);
    over_pool(&caller.pod, key, connect, request).await
}

async fn over_pool<T, F>(
    pod: &Arc<Pod>,
    key: Key,
    connect: impl Fn() -> F,
    mut request: Request<Body>,
) -> Result<Answer, TryError>
where
    T: Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<T, Failure>>,
{
    if key.http2 {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(http::header::HOST);
    } else {
        headers::to_http1(&mut request);
    }
    for _ in 0..STALE_MAX {
        let Some(mut sender) = pod.pool.take(&key).await else { break };
        match send(&mut sender, request).await {
            Ok(response) => return Ok(Answer::pooled(response, Lease::new(pod, key, sender))),
            // Not a byte of it went out: the connection had just been closed.
            Err((_, Some(unsent))) => request = unsent,
            Err((error, None)) => {
                let failed = failed(&error, true);
                if failed.stale {
                    // Those that wait beside it are likely to be closed too.
                    pod.pool.forget(&key);
                }
                return Err(failed);
            }
        }
    }
    let mut sender = open(pod, &key, connect().await?).await?;
    match send(&mut sender, request).await {
        Ok(response) => Ok(Answer::pooled(response, Lease::new(pod, key, sender))),
        Err((error, unsent)) => {
            let mut failed = failed(&error, false);
            if unsent.is_some() {
                failed.outcome = Outcome::Reset { request_sent: false };
            }
            Err(failed)
        }
    }
}

/// The handshake of HTTP, which for HTTP/1 is none.
async fn open<T>(pod: &Pod, key: &Key, io: T) -> Result<Sender, TryError>
where
    T: Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let local = io.local();
    let io = TokioIo::new(io);
    if key.http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(RESPONSE_HEADERS as u32)
            .handshake(io)
            .await
            .map_err(|e| failed(&e, false))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
        });
        Ok(pod.pool.add_http2(key, sender, local))
    } else {
        Ok(Sender::Http1(open_http1(io).await?, local))
    }
}

/// A connection of HTTP/1 over `io`; it carries an upgrade too.
pub(super) async fn open_http1<T>(io: TokioIo<T>) -> Result<http1::SendRequest<Body>, TryError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_header_size(RESPONSE_HEADERS)
        .handshake(io)
        .await
        .map_err(|e| failed(&e, false))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream HTTP connection ended");
        }
    });
    Ok(sender)
}

/// On failure with the request, if nothing of it was sent.
async fn send(
    sender: &mut Sender,
    request: Request<Body>,
) -> Result<Response<Body>, (hyper::Error, Option<Request<Body>>)> {
    let result = match sender {
        Sender::Http1(sender, _) => sender.try_send_request(request).await,
        Sender::Http2(sender, ..) => sender.try_send_request(request).await,
    };
    match result {
        Ok(response) => Ok(response.map(Body::Incoming)),
        Err(mut error) => {
            let unsent = error.take_message();
            Err((error.into_error(), unsent))
        }
    }
}

/// What a failure of hyper means.
pub(super) fn failed(error: &hyper::Error, reused: bool) -> TryError {
    let mut text = error.to_string();
    let mut outcome = Outcome::Reset { request_sent: true };
    let mut closed = error.is_incomplete_message();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        if let Some(h2) = inner.downcast_ref::<h2::Error>()
            && h2.reason() == Some(h2::Reason::REFUSED_STREAM)
        {
            outcome = Outcome::RefusedStream;
        }
        closed |= inner.downcast_ref::<std::io::Error>().is_some_and(|e| {
            matches!(e.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
        });
        source = inner.source();
    }
    let reply = if error.is_parse() {
        LocalReply::upstream_protocol(text)
    } else {
        LocalReply::upstream_reset(text)
    };
    TryError { stale: reused && closed, ..TryError::new(outcome, reply) }
}

/// What the client gets of a response's head.
pub(super) fn pass_back(response: &mut Response<Body>, upgraded: bool) {
    *response.version_mut() = Version::HTTP_11;
    headers::strip_response_hop_by_hop(response.headers_mut(), upgraded);
    // For the mesh alone to say.
    response.headers_mut().remove(headers::UNDELIVERED);
}

/// The `grpc-status` of a response without messages.
pub(super) fn early_grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
