//! What the fuzz targets reach of the private parsers of this module. No part of the API.

use http::Method;

use super::{Query, server};

/// The query of a request.
#[must_use]
pub fn query(text: &str) -> Query {
    Query::new(Method::GET, text)
}

/// Whether a `Host` names this host itself.
#[must_use]
pub fn is_loopback_name(host: &str) -> bool {
    server::is_loopback_name(host)
}
