//! Requests that switch protocols: WebSocket and other upgrades, and CONNECT. After the switch
//! both sides are bytes.

use std::time::Duration;

use fairlead_config::model::{Inbound, Snapshot};
use fairlead_policy::filter::retry::Outcome;
use fairlead_types::ResponseFlags;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::arrive::{self, Arrival};
use super::exchange::{Exchange, Reported};
use super::headers;
use super::local_reply::LocalReply;
use super::send::{self, Connected, TryError, open_http1};
use super::server::Switch;
use super::service::Plan;
use crate::body::Body;
use crate::choice::{Choice, Chosen};
use crate::labels::{self, Sides};
use crate::live::{Direction, Entry, Facts, Guarded, Live, State};
use crate::outbound::Outgoing;
use crate::reach::{self, CONNECT_ATTEMPTS, Way};
use crate::state::Shared;
use crate::transport::{Tunnel, UpgradeOffer, UpgradeOutcome, Wire};

/// Buffer of each direction after the switch.
const BUFFER: usize = 16 * 1024;

/// The client's side of a switch.
pub(super) enum Downstream {
    /// An HTTP connection.
    Http(Switch),
    /// A stream of another node.
    Stream(UpgradeOffer),
}

/// The server's side of a switch, once it has answered.
enum Upstream {
    /// It switched.
    Switched(Response<()>, UpstreamIo),
    /// It answered otherwise.
    Declined(Response<Body>),
}

enum UpstreamIo {
    Http(OnUpgrade),
    Stream(Tunnel),
}

/// A request of a pod of this node.
pub(super) async fn outbound(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    plan: &Plan<'_>,
    request: Request<()>,
    downstream: Switch,
    mut exchange: Box<Exchange>,
) -> Response<Reported> {
    // What policy judges again, and cuts, is one switch: a connection of HTTP/2 may carry many.
    let entry = downstream.is_one_of_many().then(|| {
        let (caller, to) = (&outgoing.caller, outgoing.dst.0);
        let identity = Some(caller.workload.identity.clone());
        let live = &caller.shared.live;
        live.add(Direction::Outbound, &caller.pod.id, caller.client_for(to).0, to, identity)
    });
    let live = entry.as_deref().unwrap_or_else(|| downstream.live());
    let switched = reach_out(outgoing, snapshot, plan, request, live, &mut exchange).await;
    live.set(State::Http, exchange.upstream);
    join(switched, Downstream::Http(downstream), entry, exchange).await
}

/// Asks endpoints to switch, another one where one cannot be connected to.
async fn reach_out(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    plan: &Plan<'_>,
    request: Request<()>,
    live: &Live,
    exchange: &mut Exchange,
) -> Result<Upstream, LocalReply> {
    let choice = &plan.choice;
    let mut tried = Vec::new();
    let reason = choice.why_none().into();
    let mut last = LocalReply { reason, ..LocalReply::no_healthy_upstream() };
    for _ in 0..CONNECT_ATTEMPTS.min(choice.len()) {
        let Some(chosen) = choice.pick(&tried) else { break };
        tried.push(chosen.index);
        let request = request.clone();
        match ask(outgoing, snapshot, choice, chosen, request, live, exchange).await {
            Err(TryError { outcome: Outcome::ConnectFailure, reply, .. }) => {
                exchange.transport_failure = Some(reply.reason.to_string());
                last = reply;
            }
            Err(error) => return Err(error.reply),
            Ok(upstream) => return Ok(upstream),
        }
    }
    Err(last)
}

async fn ask(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    choice: &Choice,
    chosen: Chosen,
    mut request: Request<()>,
    live: &Live,
    exchange: &mut Exchange,
) -> Result<Upstream, TryError> {
    let caller = &outgoing.caller;
    let addr = chosen.addr;
    exchange.upstream = Some(addr);
    exchange.upstream_local = None;
    exchange.parties.sides = Sides::Source;
    exchange.parties.verified = None;
    live.unguard();
    if let Some(workload) = &chosen.workload {
        exchange.parties.destination =
            labels::workload(&caller.shared.telemetry, snapshot, workload);
        exchange.upstream_identity = workload.enrolled.then(|| workload.identity.clone());
    }
    let way = caller.way(snapshot, choice, &chosen)?;
    exchange.endpoint = Some(chosen);
    let timeout = choice.connect_timeout();
    match way {
        Way::Local { pod, inbound } => {
            caller.reachable(&pod, addr, timeout).await?;
            exchange.parties.sides = Sides::Both;
            exchange.parties.verified = Some(caller.workload.identity.clone());
            let facts = caller.facts(addr);
            arrive::authorize(&inbound, &facts, &request).map_err(TryError::last)?;
            guard(&caller.shared, snapshot, &inbound, &facts, &request, live)
                .map_err(TryError::last)?;
            arrive::identify(&inbound, &facts, &mut request);
            let io = reach::deliver(&pod, caller.client_for(addr), addr, timeout).await?;
            let judged = inbound.authz.needs_http(addr.port());
            over_http1(io, request, judged, exchange).await
        }
        Way::Plain => {
            exchange.unproven();
            let io = caller.connect_plain(addr, timeout).await?;
            over_http1(io, request, false, exchange).await
        }
        Way::Mesh(target) => {
            let service = choice.as_cluster().map(|c| &*c.service.host);
            let meta = caller.meta(addr, service);
            let transport = &caller.shared.transport;
            match target.wire() {
                Wire::Hbone => {
                    let io = caller.tunnel(&target, &meta, timeout).await?;
                    over_http1(io, request, false, exchange).await
                }
                Wire::Native => match transport.upgrade(&target, &meta, request).await? {
                    UpgradeOutcome::Switched(response, tunnel) => {
                        exchange.upstream_local = tunnel.local_addr();
                        Ok(Upstream::Switched(response, UpstreamIo::Stream(tunnel)))
                    }
                    UpgradeOutcome::Declined(response) => Ok(Upstream::Declined(response)),
                },
            }
        }
    }
}

/// What was switched is asked about again when policy changes, with the request as it was judged.
fn guard<B>(
    shared: &Shared,
    snapshot: &Snapshot,
    inbound: &Inbound,
    facts: &Facts,
    request: &Request<B>,
    live: &Live,
) -> Result<(), LocalReply> {
    let mut judged = Request::new(());
    *judged.method_mut() = request.method().clone();
    *judged.uri_mut() = request.uri().clone();
    *judged.headers_mut() = request.headers().clone();
    let guarded = Guarded {
        workload: inbound.workload.id.clone(),
        facts: facts.clone(),
        request: Some(judged),
    };
    shared.guard(live, snapshot, guarded).map_err(|failure| TryError::from(failure).reply)
}

/// A request that was admitted at the pod that it is for, in the form that was judged.
pub(super) async fn to_application(
    arrival: &Arrival,
    (snapshot, inbound): (&Snapshot, &Inbound),
    mut request: Request<Body>,
    downstream: Downstream,
    mut exchange: Box<Exchange>,
) -> Response<Reported> {
    let shared = &arrival.receiver.shared;
    let (facts, pod) = (&arrival.facts, &arrival.receiver.pod.id);
    // A stream of another node is no connection of its own until it becomes one here, and nor is
    // one of HTTP/2.
    let entry = match &downstream {
        Downstream::Http(switch) if !switch.is_one_of_many() => None,
        Downstream::Http(_) | Downstream::Stream(_) => {
            let (from, to) = (facts.source, facts.destination);
            let entry = shared.live.add(Direction::Inbound, pod, from, to, facts.peer.clone());
            entry.set(State::Http, Some(to));
            Some(entry)
        }
    };
    let reached = async {
        let live = match (&downstream, &entry) {
            (Downstream::Http(switch), None) => Some(switch.live()),
            (_, entry) => entry.as_deref(),
        };
        if let Some(live) = live {
            guard(shared, snapshot, inbound, facts, &request, live)?;
        }
        arrival.prepare(inbound, &mut request);
        let timeout: Duration = snapshot.mesh.connect_timeout;
        let to = arrival.dst.0;
        let judged = inbound.authz.needs_http(to.port());
        let io = reach::deliver(&arrival.receiver.pod, arrival.client, to, timeout)
            .await
            .map_err(|f| TryError::from(f).reply)?;
        over_http1(io, request.map(|_| ()), judged, &mut exchange).await.map_err(|e| e.reply)
    };
    let reached = reached.await;
    join(reached, downstream, entry, exchange).await
}

/// Asks an HTTP/1 server to switch. `judged`: policy looks at the requests to it one by one.
///
/// A server that takes CONNECT for a request like any other answers it with a body, even if that is
/// empty, and then waits for the next request. Where requests are judged, none may come to it
/// through what only the client takes for a tunnel (RFC 9110 section 9.3.6 has no body in such an
/// answer).
async fn over_http1<T>(
    io: T,
    request: Request<()>,
    judged: bool,
    exchange: &mut Exchange,
) -> Result<Upstream, TryError>
where
    T: Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    exchange.upstream_local = io.local();
    let connect = request.method() == Method::CONNECT;
    let mut request = request.map(|()| Body::Empty);
    headers::to_http1(&mut request);
    let mut sender = open_http1(TokioIo::new(io)).await?;
    let mut response = sender.send_request(request).await.map_err(|e| send::failed(&e, false))?;
    let switched = match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => !connect,
        status => connect && status.is_success(),
    };
    if switched && connect && judged && announces_body(response.headers()) {
        let reason = "the answer to CONNECT has a body: the application opened no tunnel";
        return Err(TryError::last(LocalReply::upstream_protocol(reason.into())));
    }
    if !switched {
        let mut response = response.map(Body::Incoming);
        send::pass_back(&mut response, false);
        return Ok(Upstream::Declined(response));
    }
    let io = UpstreamIo::Http(hyper::upgrade::on(&mut response));
    Ok(Upstream::Switched(response.map(|_| ()), io))
}

fn announces_body(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// Answers the client, and carries bytes from then on.
async fn join(
    reached: Result<Upstream, LocalReply>,
    downstream: Downstream,
    entry: Option<Entry>,
    mut exchange: Box<Exchange>,
) -> Response<Reported> {
    let (response, upstream) = match reached {
        Err(reply) => {
            let response = exchange.local(&reply);
            return decline(response, downstream, exchange).await;
        }
        Ok(Upstream::Declined(response)) => return decline(response, downstream, exchange).await,
        Ok(Upstream::Switched(response, upstream)) => (response, upstream),
    };
    exchange.service_time = Some(exchange.elapsed());
    exchange.note_response(response.status().as_u16(), response.headers());
    let mut response = response.map(|()| Body::Empty);
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // What follows is no body, whatever the server says (RFC 9110 section 9.3.6).
    response.headers_mut().remove(CONTENT_LENGTH);
    send::pass_back(&mut response, upgraded);
    match downstream {
        Downstream::Http(client) => {
            // Whoever serves the connection cuts it, where it has no entry of its own.
            client.carry(|client| carry_to(TokioIo::new(client), upstream, entry, exchange));
            response.map(Reported::silent)
        }
        Downstream::Stream(offer) => {
            if let Ok(client) = offer.switch(response.map(|_| ())) {
                carry_to(client, upstream, entry, exchange).await;
            }
            Response::new(Reported::silent(Body::Empty))
        }
    }
}

async fn decline(
    response: Response<Body>,
    downstream: Downstream,
    exchange: Box<Exchange>,
) -> Response<Reported> {
    let response = exchange.respond(response, None);
    match downstream {
        Downstream::Http(_) => response,
        Downstream::Stream(offer) => {
            offer.decline(response.map(Body::boxed)).await;
            Response::new(Reported::silent(Body::Empty))
        }
    }
}

/// With an `entry`, until it is cut.
async fn carry_to<C>(client: C, upstream: UpstreamIo, entry: Option<Entry>, exchange: Box<Exchange>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send,
{
    match upstream {
        UpstreamIo::Stream(tunnel) => carry(client, tunnel, entry, exchange).await,
        UpstreamIo::Http(upstream) => {
            if let Ok(upstream) = upstream.await {
                carry(client, TokioIo::new(upstream), entry, exchange).await;
            }
        }
    }
}

/// Carries until both sides have ended, one broke, or a drain ends.
async fn carry<C, U>(
    mut client: C,
    mut upstream: U,
    entry: Option<Entry>,
    mut exchange: Box<Exchange>,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send,
    U: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (client, upstream) = (&mut client, &mut upstream);
    let cut = async {
        match &entry {
            Some(entry) => entry.until_cut().await,
            None => std::future::pending().await,
        }
    };
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(client, upstream, BUFFER, BUFFER) => copied,
        // Dropping both ends resets them.
        cut = cut => {
            exchange.reason = Some(cut.to_string().into());
            return;
        }
    };
    match copied {
        Ok((sent, received)) => {
            exchange.request_bytes.store(sent, std::sync::atomic::Ordering::Relaxed);
            exchange.response_bytes = received;
        }
        Err(error) => {
            exchange.flags = ResponseFlags::UpstreamConnectionTermination;
            exchange.reason = Some(format!("the connection broke: {error}").into());
        }
    }
    exchange.finish();
}
