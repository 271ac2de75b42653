//! Requests at the pod that they are for: its policy, the identity of the caller for the
//! application, and the way to the application.

use std::sync::Arc;

use fairlead_config::model::{Inbound, Snapshot};
use fairlead_policy::ConnView;
use fairlead_policy::authz::Verdict;
use fairlead_policy::filter::retry::Outcome;
use fairlead_types::{ClientAddr, OriginalDst};
use http::{Method, Request, Response};

use super::exchange::{Exchange, Reported};
use super::headers;
use super::local_reply::LocalReply;
use super::replay::{REPLAY_MAX, Replay};
use super::request::{self, view};
use super::send::{self, Answer, TryError};
use super::server::Switch;
use super::upgrade;
use crate::body::Body;
use crate::inbound::Receiver;
use crate::labels;
use crate::live::Facts;
use crate::state::Pod;
use crate::transport::{InboundStream, UpgradeOffer, Wire};

/// A connection or stream whose requests are for a pod of this node.
pub(crate) struct Arrival {
    pub(crate) receiver: Receiver,
    pub(crate) client: ClientAddr,
    pub(crate) dst: OriginalDst,
    pub(crate) facts: Facts,
    /// Whether a Fairlead node gets the answers: it parsed the requests.
    pub(crate) native: bool,
}

impl Arrival {
    /// Of a stream of the mesh.
    pub(crate) fn of(receiver: &Receiver, stream: &InboundStream) -> Self {
        Self {
            receiver: receiver.clone(),
            client: stream.client,
            dst: stream.dst,
            facts: Facts::of(stream),
            native: stream.peer.wire == Wire::Native,
        }
    }

    fn exchange<B>(
        &self,
        snapshot: &Snapshot,
        inbound: Option<&Inbound>,
        request: &Request<B>,
    ) -> Box<Exchange> {
        let port = self.dst.port();
        let peer = self.facts.peer.as_ref();
        let parties = self.receiver.parties(snapshot, inbound, self.client.0, peer, port);
        let shared = &self.receiver.shared;
        let mut exchange = Exchange::new(shared, parties, request, self.client.0, self.dst.0);
        exchange.cluster = Some(labels::inbound_cluster(port));
        exchange.upstream = Some(self.dst.0);
        exchange
    }

    /// One request of a connection.
    pub(crate) async fn serve(
        &self,
        request: Request<Body>,
        switches: Option<Switch>,
    ) -> Response<Reported> {
        let snapshot = self.receiver.shared.snapshots.load();
        let inbound = self.receiver.pod.inbound(&snapshot);
        let mut exchange = self.exchange(&snapshot, inbound.map(AsRef::as_ref), &request);
        let Some(inbound) = inbound else {
            let response = exchange.local(&not_enrolled());
            return exchange.respond(response, None);
        };
        let response = match (self.admit(&snapshot, inbound, request, &mut exchange), switches) {
            (Err(reply), _) => exchange.local(&reply),
            (Ok(request), Some(downstream)) => {
                let downstream = upgrade::Downstream::Http(downstream);
                return upgrade::to_application(
                    self,
                    (&snapshot, inbound),
                    request,
                    downstream,
                    exchange,
                )
                .await;
            }
            (Ok(mut request), None) => {
                self.prepare(inbound, &mut request);
                self.deliver(&snapshot, inbound, request, &mut exchange).await
            }
        };
        exchange.respond(response, None)
    }

    /// One request of a stream that a node parsed already.
    pub(crate) async fn request(&self, request: Request<Body>) -> Response<Body> {
        self.serve(request, None).await.map(Body::boxed)
    }

    /// One request of a stream that wants another protocol.
    pub(crate) async fn upgrade(&self, request: Request<()>, offer: UpgradeOffer) {
        let snapshot = self.receiver.shared.snapshots.load();
        let inbound = self.receiver.pod.inbound(&snapshot);
        let mut exchange = self.exchange(&snapshot, inbound.map(AsRef::as_ref), &request);
        let admitted = match inbound {
            Some(inbound) => {
                let request = request.map(|()| Body::Empty);
                self.admit(&snapshot, inbound, request, &mut exchange)
                    .map(|request| (inbound, request))
            }
            None => Err(not_enrolled()),
        };
        match admitted {
            Ok((inbound, request)) => {
                let downstream = upgrade::Downstream::Stream(offer);
                let _ = upgrade::to_application(
                    self,
                    (&snapshot, inbound),
                    request,
                    downstream,
                    exchange,
                )
                .await;
            }
            Err(reply) => {
                let response = exchange.local(&reply);
                let response = exchange.respond(response, None).map(Body::boxed);
                offer.decline(response).await;
            }
        }
    }

    /// Brings the request into its one form and asks the pod's policy.
    fn admit(
        &self,
        snapshot: &Snapshot,
        inbound: &Inbound,
        mut request: Request<Body>,
        exchange: &mut Exchange,
    ) -> Result<Request<Body>, LocalReply> {
        let normalization = snapshot.mesh.path_normalization;
        request::canonical(&mut request, normalization, || self.dst.to_string())?;
        headers::first_hop(request.headers_mut(), "http");
        exchange.note_request_id(request.headers());
        authorize(inbound, &self.facts, &request)?;
        Ok(request)
    }

    /// Makes an admitted request what the application is to get.
    pub(super) fn prepare<B>(&self, inbound: &Inbound, request: &mut Request<B>) {
        let upgrade = headers::is_upgrade(request);
        headers::strip_hop_by_hop(request.headers_mut(), upgrade);
        identify(inbound, &self.facts, request);
    }

    async fn deliver(
        &self,
        snapshot: &Snapshot,
        inbound: &Inbound,
        request: Request<Body>,
        exchange: &mut Exchange,
    ) -> Response<Body> {
        let http2 = request.version() == http::Version::HTTP_2
            || inbound.port(self.dst.port()).is_some_and(|p| p.protocol.is_http2());
        let to = self.dst.0;
        let timeout = snapshot.mesh.connect_timeout;
        let pod = &self.receiver.pod;
        let answered = repeat_stale(request, exchange, |request| {
            send::deliver(pod, self.client, to, http2, timeout, request)
        });
        match answered.await {
            Ok(Answer { mut response, local, lease }) => {
                exchange.upstream_local = local;
                exchange.service_time = Some(exchange.elapsed());
                exchange.lease = lease;
                send::pass_back(&mut response, false);
                response
            }
            Err(error) => {
                let mut response = exchange.local(&error.reply);
                if error.outcome == Outcome::ConnectFailure && self.native {
                    let yes = http::HeaderValue::from_static("1");
                    response.headers_mut().insert(headers::UNDELIVERED, yes);
                }
                response
            }
        }
    }
}

fn not_enrolled() -> LocalReply {
    LocalReply::no_cluster("the pod is not enrolled in the present configuration")
}

/// Asks the destination's policy about a request in canonical form.
pub(crate) fn authorize<B>(
    inbound: &Inbound,
    facts: &Facts,
    request: &Request<B>,
) -> Result<(), LocalReply> {
    // Asked when the connection came, too; but it may be older than the PeerAuthentication.
    let port = facts.destination.port();
    if facts.peer.is_none() && inbound.refuses_plaintext(port) {
        return Err(LocalReply::mtls_only(port));
    }
    let conn = ConnView {
        peer: facts.peer.as_ref(),
        source: facts.source,
        destination: facts.destination,
        sni: None,
    };
    let view = view(request.method(), request.uri(), request.headers());
    match inbound.authz.request(&conn, &view) {
        Verdict::Allow => Ok(()),
        Verdict::Deny(reason) => Err(LocalReply::denied(reason.code(), reason.to_string())),
    }
}

/// Tells the application who calls (row 2.22). What the request said itself is gone.
pub(super) fn identify<B>(inbound: &Inbound, facts: &Facts, request: &mut Request<B>) {
    request.headers_mut().remove(headers::XFCC);
    if let Some(peer) = &facts.peer
        && let Some(value) =
            headers::xfcc(&inbound.workload.identity, peer, facts.fingerprint.as_deref())
    {
        request.headers_mut().insert(headers::XFCC, value);
    }
}

/// Sends a request; once more when the connection turned out to be one that the application had
/// closed while it was idle, and repeating does no harm (RFC 9110 section 9.2.2).
async fn repeat_stale<F>(
    request: Request<Body>,
    exchange: &mut Exchange,
    mut send: impl FnMut(Request<Body>) -> F,
) -> Result<Answer, TryError>
where
    F: Future<Output = Result<Answer, TryError>>,
{
    let (parts, body) = request.into_parts();
    let body = Counted::new(body, exchange);
    let again = (is_idempotent(&parts.method) && body.is_empty()).then(|| parts.clone());
    let first = send(Request::from_parts(parts, body.into_body())).await;
    match (first, again) {
        (Err(TryError { stale: true, .. }), Some(parts)) => {
            send(Request::from_parts(parts, Body::Empty)).await
        }
        (result, _) => result,
    }
}

/// Whether repeating a request whose fate is unknown does no harm.
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// A request's body, counted as cheaply as possible: by its announced length, or on the way.
pub(super) enum Counted {
    /// Its length is known and has been counted.
    Known(Body),
    /// Counted, and kept for a retry.
    Kept(Replay),
}

impl Counted {
    pub(super) fn new(body: Body, exchange: &Exchange) -> Self {
        let hint = http_body::Body::size_hint(&body);
        match hint.exact() {
            Some(length) => {
                let count = &exchange.request_bytes;
                count.store(length, std::sync::atomic::Ordering::Relaxed);
                Self::Known(body)
            }
            None => Self::Kept(Replay::new(body, Arc::clone(&exchange.request_bytes))),
        }
    }

    /// For requests that may be sent again: what is small enough is kept.
    pub(super) fn kept(body: Body, exchange: &Exchange) -> Self {
        let hint = http_body::Body::size_hint(&body);
        match hint.exact() {
            Some(length) if length == 0 || length > REPLAY_MAX as u64 => Self::new(body, exchange),
            _ => Self::Kept(Replay::new(body, Arc::clone(&exchange.request_bytes))),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Known(body) if http_body::Body::is_end_stream(body))
    }

    fn into_body(self) -> Body {
        match self {
            Self::Known(body) => body,
            Self::Kept(replay) => Body::boxed(replay.reader()),
        }
    }
}

/// The pod that `Way::Local` leads to, as the destination of a request.
pub(super) async fn deliver_local(
    pod: &Arc<Pod>,
    inbound: &Inbound,
    facts: &Facts,
    http2: bool,
    timeout: std::time::Duration,
    mut request: Request<Body>,
) -> Result<Answer, TryError> {
    authorize(inbound, facts, &request).map_err(TryError::last)?;
    identify(inbound, facts, &mut request);
    let client = ClientAddr(facts.source);
    send::deliver(pod, client, facts.destination, http2, timeout, request).await
}
