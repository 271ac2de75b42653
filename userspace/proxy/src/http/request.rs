//! What a request looks like to routes and policies, and bringing it into that form.

use fairlead_policy::RequestView;
use fairlead_policy::authz::path::{self, Normalization};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Uri};

use super::headers;
use super::local_reply::LocalReply;

/// Whether the client may want to switch protocols: an `Upgrade`, or `CONNECT`.
pub(super) fn may_switch<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || headers::is_upgrade(request)
}

/// The view of a request in canonical form.
pub(super) fn view<'a>(
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
) -> RequestView<'a> {
    RequestView {
        method,
        scheme: uri.scheme_str().unwrap_or("http"),
        authority: uri.authority().map_or("", Authority::as_str),
        // CONNECT has none, and no rule about paths is to admit it.
        path: if uri.path().is_empty() && method != Method::CONNECT { "/" } else { uri.path() },
        query: uri.query(),
        headers,
    }
}

/// Brings target and path into the one form that routes, policies and the application see.
/// Applies to requests that came over a connection; `normalization` is the mesh's
/// (MeshConfig `pathNormalization`), `default` is the authority of HTTP/1.0.
pub(super) fn canonical<B>(
    request: &mut Request<B>,
    normalization: Normalization,
    default: impl FnOnce() -> String,
) -> Result<(), LocalReply> {
    headers::canonical_target(request, default)
        .map_err(|bad| LocalReply::bad_request(bad.as_str()))?;
    if headers::has_unknown_coding(request.headers()) {
        return Err(LocalReply::unknown_coding());
    }
    if request.method() == Method::CONNECT && !headers::drop_empty_body(request.headers_mut()) {
        // What follows the head would be body to one reader and tunnel to the next (RFC 9110
        // section 9.3.6).
        return Err(LocalReply::bad_request("CONNECT with a body"));
    }
    let path = request.uri().path();
    if request.method() == Method::CONNECT || path == "*" {
        return Ok(());
    }
    let normal = path::normalize(path, normalization)
        .map_err(|error| LocalReply::bad_request(error.to_string()))?;
    if let std::borrow::Cow::Owned(normal) = normal {
        let uri = with_path(request.uri(), &normal)?;
        *request.uri_mut() = uri;
    }
    Ok(())
}

/// The same URI with another path; the query stays.
pub(super) fn with_path(uri: &Uri, path: &str) -> Result<Uri, LocalReply> {
    let path: PathAndQuery = match uri.query() {
        Some(query) => format!("{path}?{query}").parse(),
        None => path.parse(),
    }
    .map_err(|_| LocalReply::bad_request("the path has characters that no path has"))?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| LocalReply::bad_request("invalid request target"))
}

/// The same request for another authority.
pub(super) fn set_authority(parts: &mut Parts, authority: &str) -> Result<(), LocalReply> {
    let authority = authority
        .parse()
        .map_err(|_| LocalReply::bad_request("a route sets an authority that is none"))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = Some(authority);
    parts.uri =
        Uri::from_parts(uri).map_err(|_| LocalReply::bad_request("invalid request target"))?;
    Ok(())
}
