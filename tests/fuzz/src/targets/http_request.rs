//! The form in which a request is routed, authorized and forwarded.

use fairlead_proxy::http_fuzz as http1;
use http::header::{CONNECTION, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request};

use crate::input;

/// The canonical form is one: bringing it there again, or by way of HTTP/1.1, changes nothing.
/// Headers of the hop go, and stay gone.
pub fn run(data: &[u8]) {
    let Some(request) = input::request(data) else { return };
    headers(&request);
    let _ = (http1::is_upgrade(&request), http1::is_grpc(request.headers()));
    let mut canonical = copy(&request);
    if !http1::canonical(&mut canonical) {
        return;
    }
    assert!(!canonical.headers().contains_key(HOST), "the authority is in one place");
    let authority = canonical.uri().authority().expect("it has one");
    assert!(!authority.as_str().contains('@') && !authority.as_str().is_empty());
    if request.method() != Method::CONNECT {
        let path = canonical.uri().path();
        assert!(path == "*" || path.starts_with('/'), "{path:?}");
        assert!(!path.split('/').any(|s| s == "." || s == ".."), "{path:?}");
        assert!(canonical.uri().scheme().is_some());
    }
    // CONNECT has an authority alone.
    if request.method() != Method::CONNECT {
        let query = request.uri().query().unwrap_or("");
        assert_eq!(canonical.uri().query().unwrap_or(""), query);
    }

    let mut forwarded = copy(&canonical);
    http1::to_http1(&mut forwarded);
    assert_eq!(forwarded.headers().get_all(HOST).iter().count(), 1);
    let mut again = copy(&forwarded);
    assert!(http1::canonical(&mut again), "what we forward, we take");
    assert_eq!(again.uri().authority(), canonical.uri().authority());
    assert_eq!(again.uri().path_and_query(), canonical.uri().path_and_query());
}

fn copy(request: &Request<()>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn headers(request: &Request<()>) {
    for upgrade in [false, true] {
        let mut stripped = request.headers().clone();
        http1::strip_hop_by_hop(&mut stripped, upgrade);
        for name in [EXPECT, TRANSFER_ENCODING] {
            assert!(!stripped.contains_key(&name), "{name}");
        }
        assert_eq!(stripped.contains_key(CONNECTION), upgrade);
        assert!(upgrade || !stripped.contains_key(UPGRADE));
        assert!(stripped.get_all(TE).iter().all(|te| te == "trailers"));
        // gRPC depends on it, wherever it is said.
        let said = |te: &http::HeaderValue| te == "trailers";
        let wanted = request.headers().get_all(TE).iter().any(said);
        assert!(!wanted || stripped.contains_key(TE), "trailers are wanted no more");
        for kept in [HOST, http::header::CONTENT_LENGTH, http::header::AUTHORIZATION] {
            assert_eq!(
                stripped.get_all(&kept).iter().collect::<Vec<_>>(),
                request.headers().get_all(&kept).iter().collect::<Vec<_>>(),
                "nobody may have {kept} dropped"
            );
        }
        let mut twice = stripped.clone();
        http1::strip_hop_by_hop(&mut twice, upgrade);
        assert_eq!(twice, stripped);
    }
    let mut first = request.headers().clone();
    http1::first_hop(&mut first, "http");
    assert!(!first.contains_key("x-forwarded-client-cert"), "forged identities go");
    assert!(first.contains_key("x-request-id") && first.contains_key("x-forwarded-proto"));
}
