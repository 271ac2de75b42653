//! Headers that belong to a hop, to the proxy or to the mesh: what is removed, what is set, and
//! what an application must not be able to forge.

use fairlead_types::SpiffeId;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};

use crate::random;

/// `x-forwarded-client-cert` (Envoy): the identity of the peer, for the application.
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// `x-request-id`.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-proto`.
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Which attempt this is, from 1 (Envoy `include_request_attempt_count`).
pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// Milliseconds that the upstream took.
pub(crate) const SERVICE_TIME: HeaderName =
    HeaderName::from_static("x-envoy-upstream-service-time");
/// From the destination's node to the source's: the application could not be connected to, so
/// nothing of the request reached it, and trying another endpoint does no harm. Applications
/// neither see nor set it.
pub(crate) const UNDELIVERED: HeaderName = HeaderName::from_static("x-fairlead-undelivered");
/// Path before a rewrite.
pub(crate) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers that a `Connection` header may not make us drop, because they carry meaning end to end
/// and an application or a policy behind us relies on them (RFC 9110 section 7.6.1 forbids
/// naming them).
const KEPT: [HeaderName; 6] =
    [HOST, CONTENT_LENGTH, http::header::AUTHORIZATION, REQUEST_ID, XFCC, FORWARDED_PROTO];

/// Removes the headers of the hop that the message came over (RFC 9110 section 7.6.1). Proxy
/// credentials stay: they are for a proxy that the client chose, which we are not. `upgrade` keeps `Connection: upgrade` and `Upgrade`, for messages that switch protocols.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let wants_trailers = headers.get_all(TE).iter().any(|te| contains_token(te, "trailers"));
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !(KEPT.contains(name) || upgrade && *name == UPGRADE))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, TE, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    // The 100-continue of this hop is ours to give; hyper gives it when the body is wanted.
    headers.remove(EXPECT);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes the same from a response.
pub(crate) fn strip_response_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    strip_hop_by_hop(headers, upgrade);
    headers.remove(TE);
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|t| !t.is_empty())
}

fn contains_token(value: &HeaderValue, token: &str) -> bool {
    tokens(value).any(|t| t.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case(token)))
}

/// Whether a body comes in a coding other than plain chunks. `Transfer-Encoding` belongs to one
/// hop, and nothing here undoes its other codings.
pub(crate) fn has_unknown_coding(headers: &HeaderMap) -> bool {
    headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .any(|v| !v.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// Removes the length of a body that is empty; `false` where there is one that is not.
pub(crate) fn drop_empty_body(headers: &mut HeaderMap) -> bool {
    let empty = !headers.contains_key(TRANSFER_ENCODING)
        && headers.get_all(CONTENT_LENGTH).iter().all(|length| length == "0");
    if empty {
        headers.remove(CONTENT_LENGTH);
    }
    empty
}

/// Whether the request asks for a switch of protocols (RFC 9110 section 7.8): `Connection:
/// upgrade` with `Upgrade`, except to `h2c` and in requests with a body, where it is refused by
/// ignoring it.
pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().get_all(CONNECTION).iter().any(|v| contains_token(v, "upgrade"))
        && request.headers().contains_key(UPGRADE)
        // What follows a switch must not be taken for a body, nor a body for what follows it.
        && !request.headers().contains_key(TRANSFER_ENCODING)
        && request.headers().get_all(CONTENT_LENGTH).iter().all(|length| length == "0")
        // Every line counts: one of them that asks for h2c would open a way around L7 policy.
        && request
            .headers()
            .get_all(UPGRADE)
            .iter()
            .all(|u| tokens(u).all(|t| !t.eq_ignore_ascii_case("h2c")))
}

/// Whether the message is gRPC (`application/grpc` and its suffixes, not gRPC-Web).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/grpc")
            && matches!(value.get(16), None | Some(b'+' | b';' | b' '))
    })
}

/// Why a request is refused before anything else looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadRequest {
    /// More than one `Host`.
    DuplicateHost,
    /// HTTP/1.1 without `Host`.
    MissingHost,
    /// `Host` or `:authority` is not an authority.
    InvalidHost,
    /// The target is neither a path, nor a URI, nor `*`.
    InvalidTarget,
}

impl BadRequest {
    /// In words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::DuplicateHost => "more than one Host header",
            Self::MissingHost => "no Host header",
            Self::InvalidHost => "invalid Host or :authority",
            Self::InvalidTarget => "invalid request target",
        }
    }
}

/// Brings the target into one form: the URI has scheme, authority and path (except `CONNECT`,
/// which has the authority alone), and there is no `Host` header.
///
/// The authority is `:authority` or that of an absolute URI, else `Host` (RFC 9112 section
/// 3.2.2), else, for HTTP/1.0, `default`.
pub(crate) fn canonical_target<B>(
    request: &mut Request<B>,
    default: impl FnOnce() -> String,
) -> Result<(), BadRequest> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::DuplicateHost);
    }
    let from_host = match host {
        Some(value) if value.is_empty() => None,
        Some(value) => {
            Some(Authority::try_from(value.as_bytes()).map_err(|_| BadRequest::InvalidHost)?)
        }
        None => None,
    };
    // The target of CONNECT is an authority already, and other nodes carry nothing else.
    if host.is_none()
        && request.version() == Version::HTTP_11
        && request.method() != Method::CONNECT
    {
        return Err(BadRequest::MissingHost);
    }
    let authority = match (request.uri().authority(), from_host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => host,
        (None, None) => default().parse().map_err(|_| BadRequest::InvalidHost)?,
    };
    // Credentials in an authority are deprecated (RFC 9110 section 4.2.4) and hide the host.
    if authority.as_str().contains('@') {
        return Err(BadRequest::InvalidHost);
    }
    request.headers_mut().remove(HOST);
    if request.method() == Method::CONNECT {
        return set_uri(request, None, authority, None);
    }
    let scheme = match request.uri().scheme() {
        Some(s) if *s == Scheme::HTTPS => Scheme::HTTPS,
        _ => Scheme::HTTP,
    };
    let path = match request.uri().path_and_query() {
        Some(path) if path.as_str().starts_with('/') || path.as_str() == "*" => path.clone(),
        Some(path) if path.as_str().is_empty() || path.as_str().starts_with('?') => {
            format!("/{path}").parse().map_err(|_| BadRequest::InvalidTarget)?
        }
        None => PathAndQuery::from_static("/"),
        Some(_) => return Err(BadRequest::InvalidTarget),
    };
    set_uri(request, Some(scheme), authority, Some(path))
}

fn set_uri<B>(
    request: &mut Request<B>,
    scheme: Option<Scheme>,
    authority: Authority,
    path: Option<PathAndQuery>,
) -> Result<(), BadRequest> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = scheme;
    parts.authority = Some(authority);
    parts.path_and_query = path;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| BadRequest::InvalidTarget)?;
    Ok(())
}

/// Turns the canonical form into that of HTTP/1.1: origin form and `Host`.
pub(crate) fn to_http1<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let Some(authority) = request.uri().authority().cloned() else { return };
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(HOST, host);
    }
    if request.method() == Method::CONNECT {
        return;
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
}

/// Sets what every request carries once it has passed the first proxy, and removes what its
/// sender may not say.
pub(crate) fn first_hop(headers: &mut HeaderMap, scheme: &str) {
    headers.remove(XFCC);
    if !headers.contains_key(FORWARDED_PROTO) {
        let proto = if scheme == "https" { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_bytes(&random::uuid())
    {
        headers.insert(REQUEST_ID, id);
    }
}

/// The value of `x-forwarded-client-cert` for a connection: `By` is the destination, `URI` the
/// verified peer, `Hash` the SHA-256 of its certificate in hex where there is one. `Subject` is
/// empty because mesh certificates have none, as in Istio.
pub(crate) fn xfcc(by: &SpiffeId, peer: &SpiffeId, hash: Option<&str>) -> Option<HeaderValue> {
    let hash = hash.map(|h| format!("Hash={h};")).unwrap_or_default();
    HeaderValue::from_str(&format!("By={by};{hash}Subject=\"\";URI={peer}")).ok()
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
