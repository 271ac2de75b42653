//! An application's request on its way into a session and out of it again.

use std::net::SocketAddr;

use fairlead_proxy::transport::{StreamMeta, fuzz};
use fairlead_types::ClientAddr;
use http::header::{HOST, HeaderMap, TE};
use http::{Method, Request, Version};

use crate::input;

/// What arrives is what was sent, but for the headers of the hop and those that only the
/// transport may say; an upgrade too.
pub fn run(data: &[u8]) {
    let Some(request) = input::request(data) else { return };
    let client = SocketAddr::from(([10, 0, 0, 1], 4711));
    let dst = SocketAddr::from(([10, 0, 0, 2], 80));
    let meta = StreamMeta { client: ClientAddr(client), baggage: None, service: None };

    if let Ok(carried) = fuzz::outgoing(copy(&request), dst, &meta) {
        judge_carried(&carried, client, dst);
        let (mut parts, ()) = carried.into_parts();
        fuzz::incoming(&mut parts).expect("what goes out comes in");
        let arrived = Request::from_parts(parts, ());
        assert_eq!(arrived.method(), request.method());
        assert_eq!(arrived.version(), request.version());
        judge_arrived(&request, &arrived);
    }
    if let Ok((carried, protocol)) = fuzz::outgoing_upgrade(copy(&request), dst, &meta) {
        assert_eq!(carried.method(), Method::CONNECT);
        judge_carried(&carried, client, dst);
        let (mut parts, ()) = carried.into_parts();
        fuzz::incoming_upgrade(&mut parts, &protocol).expect("what goes out comes in");
        assert_eq!(parts.method, *request.method());
        if parts.method == Method::CONNECT {
            assert_eq!(parts.uri.authority(), request.uri().authority());
            assert_eq!(parts.uri.path_and_query(), None);
        } else {
            judge_arrived(&request, &Request::from_parts(parts, ()));
        }
    }
}

fn copy(request: &Request<()>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What a session carries: valid HTTP/2, the transport's own headers once each.
fn judge_carried(carried: &Request<()>, client: SocketAddr, dst: SocketAddr) {
    let headers = carried.headers();
    assert_eq!(carried.version(), Version::HTTP_2);
    assert!(carried.uri().authority().is_some() && carried.uri().scheme().is_some());
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"] {
        assert!(!headers.contains_key(name), "{name} of one hop travels on");
    }
    assert!(!headers.contains_key(HOST));
    assert!(headers.get_all(TE).iter().all(|te| te == "trailers"), "{headers:?}");
    for (name, want) in [("fairlead-client", client), ("fairlead-dst", dst)] {
        let values: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(values, [want.to_string().as_str()], "{name}");
    }
    assert_eq!(headers.get_all("fairlead-http").iter().count(), 1);
}

/// What the application at the other end gets.
fn judge_arrived(sent: &Request<()>, arrived: &Request<()>) {
    assert_eq!(arrived.uri().authority(), None, "origin form");
    if let Some(path) = sent.uri().path_and_query() {
        assert_eq!(arrived.uri().path_and_query(), Some(path));
    }
    let own = |map: &HeaderMap| map.keys().filter(|n| n.as_str().starts_with("fairlead-")).count();
    assert_eq!(own(arrived.headers()), 0, "{:?}", arrived.headers());
    let hosts: Vec<_> = arrived.headers().get_all(HOST).iter().collect();
    match sent.uri().authority() {
        Some(authority) => assert_eq!(hosts, [authority.as_str()]),
        // A `Connection: host` may have taken it away; another one never comes.
        None => assert!(hosts.len() <= 1 && hosts.iter().all(|h| sent.headers()[HOST] == **h)),
    }
    for (name, value) in arrived.headers() {
        if !matches!(name.as_str(), "host" | "te" | "upgrade" | "connection") {
            let mut had = sent.headers().get_all(name).iter();
            assert!(had.any(|v| v == value), "{name} came from nowhere");
        }
    }
}
