//! From a stream of a session to the handler: what it is, whether it may be, and the answer.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_types::{ClientAddr, OriginalDst};
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::{Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::inbound::{
    InboundHandler, InboundStream, Peer, TunnelOffer, UpgradeOffer, send_response,
};
use super::meta;
use super::stream::StreamBody;
use crate::body::Body;

/// A stream that may go to the handler.
pub(super) struct Work {
    stream: InboundStream,
    kind: Kind,
}

enum Kind {
    Tunnel(RecvStream, Wire),
    Upgrade(Request<()>, RecvStream),
    Request(Request<RecvStream>),
}

/// Hands a stream to the handler, and its answer to the peer.
pub(super) async fn run<H: InboundHandler>(
    handler: Arc<H>,
    work: Work,
    mut respond: SendResponse<Bytes>,
) {
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

/// Whether it is an address as capture gives them to its own sockets, which no pod has: 127.0.0.0/8
/// or ::/96.
fn is_of_no_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.segments().iter().take(6).all(|segment| *segment == 0),
    }
}

/// Checks what a stream says against what its session has proven.
pub(super) fn classify(
    peer: &Arc<Peer>,
    pod_ips: &[IpAddr],
    request: Request<RecvStream>,
) -> Result<Work, (StatusCode, &'static str)> {
    let (mut parts, recv) = request.into_parts();
    let wire = peer.wire;
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
            if dst.0 != peer.local {
                return Err(bad("the destination is not the one that the session is for"));
            }
            let client = meta::parse_address(&parts.headers, &meta::CLIENT)
                .ok_or(bad("fairlead-client is missing or malformed"))?;
            let mut client = ClientAddr::canonical(client);
            if is_of_no_network(client.ip()) {
                // Of a pod that has just started, its node knows the address a moment later.
                // Where the session comes from is proven; only the port is taken from the claim.
                client = ClientAddr(SocketAddr::new(peer.addr.ip(), client.port()));
            }
            if client.ip() != peer.addr.ip() {
                return Err(bad("the claimed client is not where the session comes from"));
            }
            (client, parts.headers.get(meta::SERVICE).cloned())
        }
        Wire::Hbone => {
            if !pod_ips.contains(&dst.ip()) {
                return Err(bad("the destination is not an address of this pod"));
            }
            let (claimed, service) = meta::parse_forwarded(&parts.headers);
            // Policy sees where the session comes from; of the claim only the port is
            // taken, and only when it is about the same address.
            let port =
                claimed.filter(|c| c.ip().to_canonical() == peer.addr.ip()).map_or(0, |c| c.port());
            (ClientAddr(SocketAddr::new(peer.addr.ip(), port)), service)
        }
    };
    let stream = InboundStream {
        peer: peer.clone(),
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
