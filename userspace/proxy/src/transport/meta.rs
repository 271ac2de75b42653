//! What travels with a stream beside its bytes: who the client is, where it wanted to go, and
//! Istio's `baggage` and `forwarded`. `docs/wire-format.md` is the specification.
//!
//! Every name with the prefix `fairlead-` belongs to the transport: an application's header of
//! such a name is removed before a message leaves and after one arrives.

use std::net::{IpAddr, SocketAddr};

use fairlead_types::{ClientAddr, Refusal};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version, uri};

use super::error::TransportError;

const PREFIX: &str = "fairlead-";
pub(super) const CLIENT: HeaderName = HeaderName::from_static("fairlead-client");
pub(super) const DST: HeaderName = HeaderName::from_static("fairlead-dst");
pub(super) const HTTP: HeaderName = HeaderName::from_static("fairlead-http");
pub(super) const NO_HOST: HeaderName = HeaderName::from_static("fairlead-no-host");
pub(super) const REFUSAL: HeaderName = HeaderName::from_static("fairlead-refusal");
pub(super) const SWITCHED: HeaderName = HeaderName::from_static("fairlead-switched");
pub(super) const TARGET: HeaderName = HeaderName::from_static("fairlead-target");
pub(super) const SERVICE: HeaderName = HeaderName::from_static("fairlead-service");
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// What a stream says about its origin.
#[derive(Clone, Debug)]
pub struct StreamMeta {
    /// The application socket that began the connection.
    pub client: ClientAddr,
    /// The source workload as Istio's ambient mode describes it; see [`baggage`].
    pub baggage: Option<HeaderValue>,
    /// The service that the application asked for, if it asked for one.
    pub service: Option<HeaderValue>,
}

/// The value of `baggage` as ztunnel writes it (`src/proxy/outbound.rs`, `baggage`).
#[must_use]
pub fn baggage(
    cluster: &str,
    namespace: &str,
    workload_type: &str,
    workload: &str,
    service: &str,
    version: &str,
) -> Option<HeaderValue> {
    HeaderValue::try_from(format!(
        "k8s.cluster.name={cluster},k8s.namespace.name={namespace},\
         k8s.{workload_type}.name={workload},service.name={service},service.version={version}"
    ))
    .ok()
}

/// Removes the transport's own names.
pub(super) fn strip(headers: &mut HeaderMap) {
    // Nearly always there is none, and then nothing is allocated.
    while let Some(name) = headers.keys().find(|n| n.as_str().starts_with(PREFIX)).cloned() {
        headers.remove(name);
    }
}

/// Removes what belongs to one hop of HTTP/1 (RFC 9113 section 8.2.2). The names that
/// `Connection` lists go too.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .collect();
        for name in listed {
            // `TE: trailers` is the one that HTTP/2 keeps; gRPC depends on it.
            if name != header::TE {
                headers.remove(name);
            }
        }
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
    if headers.get_all(header::TE).iter().any(|te| te != "trailers") {
        let trailers = headers
            .get_all(header::TE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case("trailers"));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// An address as a header value.
pub(super) fn address(addr: SocketAddr) -> Result<HeaderValue, TransportError> {
    HeaderValue::try_from(addr.to_string())
        .map_err(|_| TransportError::Request("an address is not expressible"))
}

/// An address out of a header value.
pub(super) fn parse_address(headers: &HeaderMap, name: &HeaderName) -> Option<SocketAddr> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

/// `forwarded` as ztunnel writes it: `for=<client>` and, when a service was asked for, `host=`.
pub(super) fn forwarded(client: ClientAddr, service: Option<&HeaderValue>) -> Option<HeaderValue> {
    let text = match service.and_then(|s| s.to_str().ok()) {
        Some(host) => format!("for={client};host={host}"),
        None => format!("for={client}"),
    };
    HeaderValue::try_from(text).ok()
}

/// The first `for` and `host` of a `forwarded` header (RFC 7239 section 4), quoted or not.
pub(super) fn parse_forwarded(headers: &HeaderMap) -> (Option<SocketAddr>, Option<HeaderValue>) {
    let Some(value) = headers.get(header::FORWARDED).and_then(|v| v.to_str().ok()) else {
        return (None, None);
    };
    let (mut client, mut host) = (None, None);
    for pair in value.split(',').next().unwrap_or_default().split(';') {
        let Some((name, value)) = pair.trim().split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        if name.eq_ignore_ascii_case("for") {
            client = client.or_else(|| parse_node(value));
        } else if name.eq_ignore_ascii_case("host") && host.is_none() {
            host = HeaderValue::from_str(value).ok();
        }
    }
    (client, host)
}

fn parse_node(text: &str) -> Option<SocketAddr> {
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
}

/// Turns an application's request into one that the session carries. `:authority` is the
/// application's own `Host`; what the transport says is in its own headers.
pub(super) fn outgoing<B>(
    request: Request<B>,
    dst: SocketAddr,
    meta: &StreamMeta,
) -> Result<(Request<()>, B), TransportError> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    strip_hop_by_hop(&mut parts.headers);
    // HTTP/2 would carry both, and a receiver could believe either.
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return Err(TransportError::Request("it has more than one Host")),
        (Some(authority), _, _) => Some(authority.clone()),
        (None, Some(host), None) if host.is_empty() => None,
        (None, Some(host), None) => Some(
            uri::Authority::try_from(host.as_bytes())
                .map_err(|_| TransportError::Request("its Host is not an authority"))?,
        ),
        (None, None, None) => None,
    };
    parts.headers.remove(header::HOST);
    let authority = match host {
        Some(authority) => authority,
        None => {
            parts.headers.insert(NO_HOST, HeaderValue::from_static("1"));
            uri::Authority::try_from(dst.to_string())
                .map_err(|_| TransportError::Request("an address is not expressible"))?
        }
    };
    let path = match parts.uri.path_and_query() {
        Some(path) => path.clone(),
        None => uri::PathAndQuery::from_static("/"),
    };
    let mut target = uri::Parts::default();
    target.scheme = Some(uri::Scheme::HTTP);
    target.authority = Some(authority);
    target.path_and_query = Some(path);
    parts.uri =
        Uri::from_parts(target).map_err(|_| TransportError::Request("its URI is not valid"))?;
    let version = match parts.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    parts.version = Version::HTTP_2;
    parts.headers.insert(HTTP, HeaderValue::from_static(version));
    stamp(&mut parts.headers, dst, meta)?;
    Ok((Request::from_parts(parts, ()), body))
}

/// The transport's own headers of a parsed request.
pub(super) fn stamp(
    headers: &mut HeaderMap,
    dst: SocketAddr,
    meta: &StreamMeta,
) -> Result<(), TransportError> {
    headers.insert(CLIENT, address(meta.client.0)?);
    headers.insert(DST, address(dst)?);
    Ok(())
}

/// Turns what the session carried back into the application's request: origin-form URI, `Host`,
/// and the version that the client spoke.
pub(super) fn incoming(parts: &mut http::request::Parts) -> Result<(), &'static str> {
    let version = parts.headers.get(HTTP).map(HeaderValue::as_bytes);
    parts.version = match version {
        Some(b"1.0") => Version::HTTP_10,
        Some(b"1.1") => Version::HTTP_11,
        Some(b"2") => Version::HTTP_2,
        _ => return Err("fairlead-http is missing or unknown"),
    };
    let hostless = parts.headers.contains_key(NO_HOST);
    let uri = std::mem::take(&mut parts.uri).into_parts();
    if parts.headers.contains_key(header::HOST) {
        return Err("a carried request has no Host header");
    }
    if !hostless {
        let authority = uri.authority.ok_or("a carried request has an :authority")?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| "bad :authority")?;
        parts.headers.insert(header::HOST, host);
    }
    let mut origin = uri::Parts::default();
    origin.path_and_query = uri.path_and_query;
    parts.uri = Uri::from_parts(origin).map_err(|_| "bad :path")?;
    strip(&mut parts.headers);
    Ok(())
}

/// A refusal as an answer to CONNECT: the status that ztunnel gives, and the class.
pub(super) fn refusal_status(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::Deny => StatusCode::UNAUTHORIZED,
        Refusal::NetworkPolicy | Refusal::IdentityError | Refusal::TlsFailure => {
            StatusCode::BAD_REQUEST
        }
        Refusal::Connect | Refusal::Overload => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::NoRoute => StatusCode::NOT_FOUND,
    }
}

/// The class that a refused CONNECT names.
pub(super) fn parse_refusal(headers: &HeaderMap) -> Option<Refusal> {
    let name = headers.get(REFUSAL)?.as_bytes();
    [
        Refusal::Deny,
        Refusal::NetworkPolicy,
        Refusal::Connect,
        Refusal::TlsFailure,
        Refusal::IdentityError,
        Refusal::Overload,
        Refusal::NoRoute,
    ]
    .into_iter()
    .find(|r| r.as_str().as_bytes() == name)
}

/// Whether a request asks for 100 (Continue) before it sends its body.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The `:protocol` under which an application's own CONNECT travels.
const CONNECT_PROTOCOL: &str = "fairlead-connect";

/// Turns a request that wants another protocol into an extended CONNECT (RFC 8441), and names
/// the protocol.
pub(super) fn outgoing_upgrade(
    mut request: Request<()>,
    dst: SocketAddr,
    meta: &StreamMeta,
) -> Result<(Request<()>, String), TransportError> {
    let (protocol, target) = match *request.method() {
        Method::CONNECT => {
            let target = request
                .uri()
                .authority()
                .and_then(|a| HeaderValue::from_str(a.as_str()).ok())
                .ok_or(TransportError::Request("its CONNECT names no target"))?;
            *request.uri_mut() = Uri::from_static("/");
            (CONNECT_PROTOCOL.to_owned(), Some(target))
        }
        Method::GET => {
            let token = request
                .headers()
                .get(header::UPGRADE)
                .and_then(|v| v.to_str().ok())
                .filter(|v| HeaderName::from_bytes(v.as_bytes()).is_ok())
                .filter(|v| *v != CONNECT_PROTOCOL)
                .ok_or(TransportError::Request("its Upgrade is not one protocol"))?;
            (token.to_owned(), None)
        }
        _ => return Err(TransportError::Request("only GET and CONNECT can switch protocols")),
    };
    let (mut request, ()) = outgoing(request, dst, meta)?;
    if let Some(target) = target {
        request.headers_mut().insert(TARGET, target);
    }
    *request.method_mut() = Method::CONNECT;
    Ok((request, protocol))
}

/// Undoes [`outgoing_upgrade`].
pub(super) fn incoming_upgrade(
    parts: &mut http::request::Parts,
    protocol: &str,
) -> Result<(), &'static str> {
    let target = parts.headers.get(TARGET).cloned();
    incoming(parts)?;
    if protocol == CONNECT_PROTOCOL {
        let target = target.ok_or("a carried CONNECT names its target")?;
        let mut uri = uri::Parts::default();
        uri.authority = Some(target.as_bytes().try_into().map_err(|_| "bad CONNECT target")?);
        parts.uri = Uri::from_parts(uri).map_err(|_| "bad CONNECT target")?;
        parts.method = Method::CONNECT;
    } else {
        let token = HeaderValue::from_str(protocol).map_err(|_| "bad :protocol")?;
        parts.method = Method::GET;
        parts.headers.insert(header::UPGRADE, token);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "meta_tests.rs"]
mod tests;
