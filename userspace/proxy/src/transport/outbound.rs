//! The outbound side: streams to other nodes.

use std::collections::HashSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::IdentityStore;
use fairlead_types::{NetnsCookie, SpiffeId};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream, ext::Protocol};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, uri};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use super::error::TransportError;
use super::meta::{self, StreamMeta};
use super::pool::{Pool, SessionInfo};
use super::server::Handshakes;
use super::session::Place;
use super::stream::{AbortOnDrop, StreamBody, Tunnel};
use super::upload::{await_continue, upload_body};
use super::{Target, Wire, limits};
use crate::body::Body;
use crate::housekeeping::keep_doing;

/// How often a stream is started anew when its session turns out to be leaving.
const ATTEMPTS: usize = 4;
/// A request body of at most this size needs no task of its own to be sent.
const INLINE_BODY: usize = 64 * 1024;

/// A node's transport: its sessions in both directions.
pub struct Transport {
    pub(super) identity: Arc<IdentityStore>,
    pub(super) handshakes: Handshakes,
    pub(super) draining: watch::Sender<bool>,
    pub(super) inbound: AtomicUsize,
    pub(super) inbound_ended: Notify,
    pool: Pool,
    /// Looks for idle sessions.
    sweep: Mutex<Option<AbortOnDrop>>,
}

/// How a request for another protocol was answered.
pub enum UpgradeOutcome {
    /// Switched: the response (101, or 2xx to CONNECT) and the bytes that follow it.
    Switched(Response<()>, Tunnel),
    /// Not switched: an ordinary response.
    Declined(Response<Body>),
}

impl Transport {
    /// The transport of a node with these identities. Needs a tokio runtime around it: idle
    /// sessions are swept by a task that ends with the transport.
    #[must_use]
    pub fn new(identity: Arc<IdentityStore>) -> Arc<Self> {
        let transport = Arc::new(Self {
            identity,
            handshakes: Handshakes::default(),
            draining: watch::Sender::new(false),
            inbound: AtomicUsize::new(0),
            inbound_ended: Notify::new(),
            pool: Pool::new(),
            sweep: Mutex::default(),
        });
        let weak = Arc::downgrade(&transport);
        let sweep = keep_doing("sweeping sessions", move || {
            let weak = weak.clone();
            async move {
                loop {
                    tokio::time::sleep(limits::SWEEP).await;
                    match weak.upgrade() {
                        Some(transport) => transport.pool.sweep(),
                        // The task ends with the transport, below.
                        None => std::future::pending().await,
                    }
                }
            }
        });
        *transport.sweep.lock() = Some(AbortOnDrop::new(tokio::spawn(sweep).abort_handle()));
        transport
    }

    /// SHA-256 of the certificate that `id` has at this moment, lower-case hexadecimal.
    pub(crate) fn fingerprint(&self, id: &SpiffeId) -> Option<Arc<str>> {
        self.identity.certificate(id).ok().map(|c| Arc::clone(c.fingerprint()))
    }

    async fn place(&self, target: &Target) -> Result<Place, TransportError> {
        // Also while draining: what was accepted before has its requests answered.
        self.pool.place(target, &self.identity).await
    }

    /// Starts a stream on a session that still takes streams.
    async fn start(
        &self,
        target: &Target,
        request: Request<()>,
        ends: bool,
    ) -> Result<(Place, ResponseFuture, SendStream<Bytes>), TransportError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let place = self.place(target).await?;
            let mut sender = place.sender();
            match poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => {
                    let (response, send) = match sender.send_request(request, ends) {
                        Ok(started) => started,
                        // The session ended between the two; the request is gone with it.
                        Err(error) if error.is_io() || error.is_go_away() => {
                            return Err(unsent(&place, error));
                        }
                        Err(error) => return Err(place.why(error.into())),
                    };
                    return Ok((place, response, send));
                }
                // The session ended, or the peer said GOAWAY, since the pool looked at it.
                Err(_) if attempts < ATTEMPTS => place.leave(),
                Err(error) => return Err(unsent(&place, error)),
            }
        }
    }

    /// Starts a stream and waits for its answer: again, as long as the peer has not looked at it.
    async fn answered(
        &self,
        target: &Target,
        request: &Request<()>,
    ) -> Result<(Place, SendStream<Bytes>, Response<RecvStream>), TransportError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.start(target, request.clone(), false).await {
                Ok((place, response, send)) => match response.await {
                    Ok(response) => return Ok((place, send, response)),
                    Err(error) => seen_or_leave(&place, error),
                },
                Err(error) => error,
            };
            if !error.is_unseen() || attempts == ATTEMPTS {
                return Err(error);
            }
        }
    }

    /// Opens a session to `target` ahead of its first stream, if there is none.
    pub fn warm(self: &Arc<Self>, target: &Target) {
        if self.pool.has_session(target) || *self.draining.borrow() {
            return;
        }
        let (transport, target) = (self.clone(), target.clone());
        tokio::spawn(async move {
            if let Err(error) = transport.place(&target).await {
                tracing::debug!(to = %target.connect_to(), %error, "session not opened ahead");
            }
        });
    }

    /// Carries a connection to `target`; returns when the destination has taken it.
    ///
    /// # Errors
    /// [`TransportError`] says who is to blame, and whether another endpoint may be tried.
    pub async fn tunnel(
        &self,
        target: &Target,
        meta: &StreamMeta,
    ) -> Result<Tunnel, TransportError> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority(&target.dst().to_string())?;
        let headers = request.headers_mut();
        match target.wire() {
            Wire::Native => {
                headers.insert(meta::CLIENT, meta::address(meta.client.0)?);
                if let Some(service) = &meta.service {
                    headers.insert(meta::SERVICE, service.clone());
                }
            }
            Wire::Hbone => {
                if let Some(value) = meta::forwarded(meta.client, meta.service.as_ref()) {
                    headers.insert(header::FORWARDED, value);
                }
            }
        }
        if let Some(baggage) = &meta.baggage {
            headers.insert(meta::BAGGAGE, baggage.clone());
        }
        let (place, send, response) = self.answered(target, &request).await?;
        if response.status() != StatusCode::OK {
            let refusal = match target.wire() {
                Wire::Native => meta::parse_refusal(response.headers()),
                Wire::Hbone => None,
            };
            return Err(TransportError::Refused { status: response.status(), refusal });
        }
        Ok(Tunnel::new(send, response.into_body(), Some(place)))
    }

    /// As [`Transport::tunnel`], for at most `limit`: the destination's node may be alive and its
    /// application not answer it.
    ///
    /// # Errors
    /// See there; [`TransportError::Timeout`] when `limit` has passed.
    pub async fn tunnel_within(
        &self,
        target: &Target,
        meta: &StreamMeta,
        limit: Duration,
    ) -> Result<Tunnel, TransportError> {
        // Dropped, the stream is reset.
        timeout(limit, self.tunnel(target, meta)).await.unwrap_or(Err(TransportError::Timeout {
            what: "the answer of the destination's node",
            limit,
        }))
    }

    /// Carries a parsed request to `target` (native only) and returns its response. Dropping the
    /// future, or the response's body before its end, cancels the stream.
    ///
    /// # Errors
    /// [`TransportError`] says who is to blame, and whether a retry repeats nothing.
    pub async fn request(
        &self,
        target: &Target,
        meta: &StreamMeta,
        request: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        self.request_from(target, meta, request).await.map(|(response, _)| response)
    }

    /// As [`Transport::request`], with this side's address of the session, for the access log. One
    /// that the peer has not looked at is for the caller to repeat, who has kept the head anyway.
    pub(crate) async fn request_from(
        &self,
        target: &Target,
        meta: &StreamMeta,
        request: Request<Body>,
    ) -> Result<(Response<Body>, SocketAddr), TransportError> {
        native_only(target)?;
        if request.method() == Method::CONNECT {
            return Err(TransportError::Request("CONNECT is carried by `upgrade`"));
        }
        let (request, body) = meta::outgoing(request, target.dst(), meta)?;
        let expects = meta::expects_continue(request.headers());
        let ends = body.is_end_stream();
        let (place, mut response, mut send) = self.start(target, request, ends).await?;
        let local = place.local();
        let mut upload = None;
        if let (false, Body::Full(Some(bytes))) = (expects, &body)
            && bytes.len() <= INLINE_BODY
        {
            // Small enough to wait in the stream's own buffer for its credit. Where the peer has
            // ended the stream already, its answer says why.
            let _ = send.send_data(bytes.clone(), true);
        } else if !ends {
            let (go, gone) = oneshot::channel();
            let task = tokio::spawn(upload_body(send, body, expects.then_some(gone)));
            upload = Some(AbortOnDrop::new(task.abort_handle()));
            if expects {
                await_continue(&mut response).await;
                // The upload has ended already if the destination reset the stream.
                let _ = go.send(());
            }
        }
        let response = response.await.map_err(|e| seen_or_leave(&place, e))?;
        let (mut parts, recv) = response.into_parts();
        meta::strip(&mut parts.headers);
        let body = if recv.is_end_stream() && upload.is_none() {
            Body::Empty
        } else {
            Body::Stream(StreamBody::new(recv, Some(place)).with_upload(upload))
        };
        Ok((Response::from_parts(parts, body), local))
    }

    /// Carries a request that wants another protocol (`Upgrade`, or an application's CONNECT) to
    /// `target` (native only; RFC 8441's extended CONNECT).
    ///
    /// # Errors
    /// As [`Transport::request`].
    pub async fn upgrade(
        &self,
        target: &Target,
        meta: &StreamMeta,
        request: Request<()>,
    ) -> Result<UpgradeOutcome, TransportError> {
        native_only(target)?;
        let (request, protocol) = meta::outgoing_upgrade(request, target.dst(), meta)?;
        let mut request = request;
        request.extensions_mut().insert(Protocol::from(protocol.as_str()));
        let (place, send, response) = self.answered(target, &request).await?;
        let (mut parts, recv) = response.into_parts();
        let switched = parts.headers.get(meta::SWITCHED).cloned();
        meta::strip(&mut parts.headers);
        match switched {
            Some(status) => {
                parts.status = StatusCode::from_bytes(status.as_bytes())
                    .map_err(|_| TransportError::Protocol("bad fairlead-switched".into()))?;
                if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    let upgrade = HeaderValue::from_str(&protocol)
                        .map_err(|_| TransportError::Request("its Upgrade is not a token"))?;
                    parts.headers.insert(header::UPGRADE, upgrade);
                    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                }
                let tunnel = Tunnel::new(send, recv, Some(place));
                Ok(UpgradeOutcome::Switched(Response::from_parts(parts, ()), tunnel))
            }
            None => {
                // Nothing is going to be sent on it. Fails when the destination has answered in
                // full already, and that is well too.
                let mut send = send;
                let _ = send.send_data(Bytes::new(), true);
                let body = Body::Stream(StreamBody::new(recv, Some(place)));
                Ok(UpgradeOutcome::Declined(Response::from_parts(parts, body)))
            }
        }
    }

    /// Lets go of the sessions of pods that are not in `pods` any more.
    pub fn retain(&self, pods: &HashSet<NetnsCookie>) {
        self.pool.retain(|key| pods.contains(&key.pod));
    }

    /// The sessions at this moment, for the admin API.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.pool.info()
    }

    /// Inbound sessions at this moment.
    #[must_use]
    pub fn inbound_sessions(&self) -> usize {
        self.inbound.load(Ordering::Acquire)
    }

    /// Ends in an orderly way: no new streams of the peers, GOAWAY to them, and up
    /// to `deadline` for what is under way. Returns how many inbound sessions were still open.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.draining.send_replace(true);
        self.pool.retain(|_| false);
        let done = async {
            loop {
                let ended = self.inbound_ended.notified();
                if self.inbound.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = timeout(deadline, done).await;
        self.inbound.load(Ordering::Acquire)
    }
}

/// The session was lost before anything of a stream was sent on it.
fn unsent(place: &Place, error: h2::Error) -> TransportError {
    place.leave();
    match place.why(error.into()) {
        TransportError::SessionLost(why) => TransportError::Unsent(why),
        other => TransportError::Unsent(other.to_string()),
    }
}

/// Why a stream brought no answer; where the peer has not looked at it, its session takes no more.
fn seen_or_leave(place: &Place, error: h2::Error) -> TransportError {
    let error = place.why(error.into());
    if error.is_unseen() {
        place.leave();
    }
    error
}

fn native_only(target: &Target) -> Result<(), TransportError> {
    match target.wire() {
        Wire::Native => Ok(()),
        Wire::Hbone => Err(TransportError::Request("HBONE carries connections, not requests")),
    }
}

fn authority(text: &str) -> Result<Uri, TransportError> {
    let mut parts = uri::Parts::default();
    parts.authority = text.parse().ok();
    Uri::from_parts(parts).map_err(|_| TransportError::Request("its destination is no address"))
}
