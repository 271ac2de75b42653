//! The inbound side as a handler sees it: who the peer is, what a stream claims and was checked
//! for, and how it is answered.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_types::{ClientAddr, OriginalDst, Refusal, SpiffeId};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::HeaderValue;
use http::{Request, Response, StatusCode};

use super::error::TransportError;
use super::meta;
use super::stream::Tunnel;
use super::upload::upload_body;
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
    /// SHA-256 of its certificate, lower-case hexadecimal.
    pub fingerprint: Arc<str>,
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
    pub(super) respond: SendResponse<Bytes>,
    pub(super) recv: RecvStream,
    pub(super) wire: Wire,
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
    pub(super) respond: SendResponse<Bytes>,
    pub(super) recv: RecvStream,
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

/// Sends a response with its body, at the pace of the peer.
pub(super) async fn send_response(respond: &mut SendResponse<Bytes>, response: Response<Body>) {
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
