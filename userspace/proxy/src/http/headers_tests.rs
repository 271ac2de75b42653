//! Tests of the header rules.

use super::*;

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()))
        .collect()
}

fn request(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut r = Request::builder().version(version).method(method).uri(uri).body(()).unwrap();
    *r.headers_mut() = map(headers);
    r
}

#[test]
fn hop_by_hop_headers_go_and_the_rest_stays() {
    let mut headers = map(&[
        ("connection", "close, X-Secret"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("x-secret", "1"),
        ("te", "gzip, trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("x-b3-traceid", "1"),
        ("traceparent", "2"),
        ("proxy-authorization", "3"),
        ("expect", "100-continue"),
    ]);
    strip_hop_by_hop(&mut headers, false);
    let left = map(&[
        ("te", "trailers"),
        ("x-b3-traceid", "1"),
        ("traceparent", "2"),
        ("proxy-authorization", "3"),
    ]);
    assert_eq!(headers, left);
}

#[test]
fn connection_cannot_strip_what_others_rely_on() {
    let mut headers = map(&[
        ("connection", "authorization, x-forwarded-client-cert, host, content-length"),
        ("authorization", "a"),
        ("content-length", "3"),
    ]);
    strip_hop_by_hop(&mut headers, false);
    assert_eq!(headers, map(&[("authorization", "a"), ("content-length", "3")]));
}

#[test]
fn upgrades() {
    let ws = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
    let mut r = request(Version::HTTP_11, "GET", "/", &ws);
    assert!(is_upgrade(&r));
    strip_hop_by_hop(r.headers_mut(), true);
    assert_eq!(*r.headers(), map(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    assert!(!is_upgrade(&request(Version::HTTP_10, "GET", "/", &ws)));
    let h2c = [("connection", "upgrade, http2-settings"), ("upgrade", "h2c")];
    assert!(!is_upgrade(&request(Version::HTTP_11, "GET", "/", &h2c)));
    assert!(!is_upgrade(&request(Version::HTTP_11, "GET", "/", &[("upgrade", "websocket")])));
    let with = |more| request(Version::HTTP_11, "POST", "/", &[ws[0], ws[1], more]);
    assert!(is_upgrade(&with(("content-length", "0"))));
    for body in [("content-length", "5"), ("transfer-encoding", "chunked")] {
        assert!(!is_upgrade(&with(body)), "{body:?}");
    }
}

#[test]
fn targets() {
    let default = || "10.0.0.1:80".to_owned();
    let check = |mut r: Request<()>| {
        canonical_target(&mut r, default).map(|()| {
            assert!(!r.headers().contains_key(HOST));
            r.uri().to_string()
        })
    };
    let h1 = |uri, headers| request(Version::HTTP_11, "GET", uri, headers);
    assert_eq!(check(h1("/a?b", &[("host", "x:81")])), Ok("http://x:81/a?b".into()));
    assert_eq!(check(h1("http://y/a", &[("host", "x")])), Ok("http://y/a".into()));
    assert_eq!(check(h1("/", &[])), Err(BadRequest::MissingHost));
    assert_eq!(check(h1("/", &[("host", "a"), ("host", "a")])), Err(BadRequest::DuplicateHost));
    assert_eq!(check(h1("/", &[("host", "a b")])), Err(BadRequest::InvalidHost));
    assert_eq!(check(h1("/", &[("host", "a@b")])), Err(BadRequest::InvalidHost));
    let h10 = request(Version::HTTP_10, "GET", "/a", &[]);
    assert_eq!(check(h10), Ok("http://10.0.0.1:80/a".into()));
    let h2 = request(Version::HTTP_2, "POST", "http://svc/a.B/C", &[("host", "other")]);
    assert_eq!(check(h2), Ok("http://svc/a.B/C".into()));
    let connect = request(Version::HTTP_11, "CONNECT", "db:5432", &[("host", "db:5432")]);
    assert_eq!(check(connect), Ok("db:5432".into()));
    let mut options = request(Version::HTTP_11, "OPTIONS", "*", &[("host", "a")]);
    canonical_target(&mut options, default).unwrap();
    assert_eq!((options.uri().path(), options.uri().host()), ("*", Some("a")));
    to_http1(&mut options);
    assert_eq!(options.uri().to_string(), "*");
}

#[test]
fn http1_form() {
    let mut r = request(Version::HTTP_2, "GET", "http://svc:80/a?b=c", &[]);
    to_http1(&mut r);
    assert_eq!((r.uri().to_string().as_str(), r.version()), ("/a?b=c", Version::HTTP_11));
    assert_eq!(r.headers()[HOST], "svc:80");
}

#[test]
fn an_application_cannot_forge_its_identity() {
    let mut headers =
        map(&[("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/root")]);
    first_hop(&mut headers, "http");
    assert!(!headers.contains_key(XFCC));
    assert_eq!(headers[FORWARDED_PROTO], "http");
    assert_eq!(headers[REQUEST_ID].len(), 36);
    let (by, peer): (SpiffeId, SpiffeId) = (
        "spiffe://cluster.local/ns/b/sa/y".parse().unwrap(),
        "spiffe://cluster.local/ns/a/sa/x".parse().unwrap(),
    );
    assert_eq!(
        xfcc(&by, &peer, Some("ab12")).unwrap(),
        "By=spiffe://cluster.local/ns/b/sa/y;Hash=ab12;Subject=\"\";URI=spiffe://cluster.local/ns/a/sa/x"
    );
}

#[test]
fn grpc_is_told_from_grpc_web() {
    for (value, want) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        assert_eq!(is_grpc(&map(&[("content-type", value)])), want, "{value}");
    }
}
