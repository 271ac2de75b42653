//! What the fuzz targets reach of the private parsers of this module. No part of the API.

use fairlead_policy::authz::path::Normalization;
use http::{HeaderMap, Request};

use super::head::{Found, HeadScan};
use super::{headers, request};

/// What the scanner of heads finds in the pieces of a connection: where, and why it is refused,
/// or nothing in words where a switch of protocols is asked for.
pub fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(usize, Option<&'static str>)> {
    let (mut scan, mut before) = (HeadScan::new(), 0);
    for piece in pieces {
        match scan.scan(piece) {
            Found::Nothing => before += piece.len(),
            Found::MaySwitch(at) => return Some((before + at, None)),
            Found::Refused(at, why) => return Some((before + at, Some(why.as_str()))),
        }
    }
    None
}

/// Brings target and path into canonical form, or says that the request is refused.
pub fn canonical(request: &mut Request<()>) -> bool {
    request::canonical(request, Normalization::default(), || "default.example".to_owned()).is_ok()
}

/// The canonical form as HTTP/1.1.
pub fn to_http1(request: &mut Request<()>) {
    headers::to_http1(request);
}

/// Removes what belongs to one hop.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    headers::strip_hop_by_hop(headers, upgrade);
}

/// Whether a switch of protocols is asked for.
#[must_use]
pub fn is_upgrade(request: &Request<()>) -> bool {
    headers::is_upgrade(request)
}

/// Whether the message is gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers::is_grpc(headers)
}

/// What the first hop sets and removes.
pub fn first_hop(headers: &mut HeaderMap, scheme: &str) {
    headers::first_hop(headers, scheme);
}
