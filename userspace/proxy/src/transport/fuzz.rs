//! What the fuzz targets reach of the private parsers of this module. No part of the API.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Request, request};

use super::{StreamMeta, TransportError, meta};

/// A header that holds one address.
#[must_use]
pub fn parse_address(headers: &HeaderMap, name: &HeaderName) -> Option<SocketAddr> {
    meta::parse_address(headers, name)
}

/// `forwarded`, written.
#[must_use]
pub fn forwarded(client: SocketAddr, service: Option<&HeaderValue>) -> Option<HeaderValue> {
    meta::forwarded(fairlead_types::ClientAddr(client), service)
}

/// `forwarded`, read.
#[must_use]
pub fn parse_forwarded(headers: &HeaderMap) -> (Option<SocketAddr>, Option<HeaderValue>) {
    meta::parse_forwarded(headers)
}

/// An application's request as the session carries it.
///
/// # Errors
/// It cannot be carried.
pub fn outgoing(
    request: Request<()>,
    dst: SocketAddr,
    meta: &StreamMeta,
) -> Result<Request<()>, TransportError> {
    meta::outgoing(request, dst, meta).map(|(request, ())| request)
}

/// And back.
///
/// # Errors
/// It is not a carried request.
pub fn incoming(parts: &mut request::Parts) -> Result<(), &'static str> {
    meta::incoming(parts)
}

/// The same for a request that switches protocols.
///
/// # Errors
/// It cannot be carried.
pub fn outgoing_upgrade(
    request: Request<()>,
    dst: SocketAddr,
    meta: &StreamMeta,
) -> Result<(Request<()>, String), TransportError> {
    meta::outgoing_upgrade(request, dst, meta)
}

/// And back.
///
/// # Errors
/// It is not a carried upgrade.
pub fn incoming_upgrade(parts: &mut request::Parts, protocol: &str) -> Result<(), &'static str> {
    meta::incoming_upgrade(parts, protocol)
}
