//! What a peer that is no Fairlead, or not an honest one, sends as a carried request.

use fairlead_proxy::transport::fuzz;
use http::Method;
use http::header::HOST;

use crate::input;

/// Taken or refused; what is taken has one `Host` at most, none of the transport's own headers,
/// and a target that an HTTP/1 server reads.
pub fn run(data: &[u8]) {
    let (protocol, rest) = input::two(data);
    let Some(request) = input::request(rest) else { return };
    let upgrade = !protocol.is_empty();
    let (mut parts, ()) = request.into_parts();
    let result = if upgrade {
        let Some(protocol) = input::text(protocol) else { return };
        fuzz::incoming_upgrade(&mut parts, protocol)
    } else {
        fuzz::incoming(&mut parts)
    };
    match result {
        Err(reason) => assert!(!reason.is_empty()),
        Ok(()) => {
            assert!(parts.headers.get_all(HOST).iter().count() <= 1);
            let own = |name: &http::HeaderName| name.as_str().starts_with("fairlead-");
            assert!(!parts.headers.keys().any(own), "{:?}", parts.headers);
            if upgrade && parts.method == Method::CONNECT {
                assert!(parts.uri.authority().is_some());
            } else {
                assert!(parts.uri.authority().is_none() && parts.uri.scheme().is_none());
            }
        }
    }
}
