//! Answers that the proxy gives itself, with Envoy's words, because clients, dashboards and
//! runbooks know them.

use std::borrow::Cow;

use fairlead_types::ResponseFlags;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Body;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the proxy.
#[derive(Debug)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) flags: ResponseFlags,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub(crate) details: Cow<'static, str>,
    /// The body.
    pub(crate) text: Cow<'static, str>,
    /// Why, for people; goes to the log, not to the client.
    pub(crate) reason: Cow<'static, str>,
    /// A gRPC status of its own; otherwise it follows from the HTTP status.
    pub(crate) grpc_status: Option<u8>,
    /// Whether an HTTP/1 connection ends with it.
    pub(crate) closes: bool,
}

impl LocalReply {
    fn new(
        status: StatusCode,
        flags: ResponseFlags,
        details: &'static str,
        text: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            flags,
            details: details.into(),
            text: text.into(),
            reason: reason.into(),
            grpc_status: None,
            closes: false,
        }
    }

    /// 400: the request itself is wrong.
    pub(crate) fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        let reason = reason.into();
        let details = "http1.codec_error";
        // Whatever follows a request that has no one meaning has none either.
        let closes = true;
        Self {
            closes,
            ..Self::new(
                StatusCode::BAD_REQUEST,
                ResponseFlags::DownstreamProtocolError,
                details,
                "Bad Request",
                reason,
            )
        }
    }

    /// 501: a body in a coding that nobody here undoes (Envoy's `http1.invalid_transfer_encoding`).
    pub(crate) fn unknown_coding() -> Self {
        Self {
            closes: true,
            ..Self::new(
                StatusCode::NOT_IMPLEMENTED,
                ResponseFlags::DownstreamProtocolError,
                "http1.invalid_transfer_encoding",
                "Not Implemented",
                "a Transfer-Encoding other than chunked",
            )
        }
    }

    /// 403: a request in plaintext over a connection from before its port took mTLS only.
    pub(crate) fn mtls_only(port: u16) -> Self {
        let reason = format!("plaintext to port {port}, which takes mTLS only (STRICT)");
        Self { closes: true, ..Self::denied("plaintext_on_mtls_only_port".to_owned(), reason) }
    }

    /// 404 `NR`.
    pub(crate) fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            ResponseFlags::NoRouteFound,
            "route_not_found",
            "",
            "no route matches the request",
        )
    }

    /// 502: REGISTRY_ONLY, and the destination is not in the registry (Istio's
    /// `block_all` virtual host).
    pub(crate) fn not_in_registry(reason: String) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, ResponseFlags::None, "direct_response", "", reason)
    }

    /// 503 `NC`.
    pub(crate) fn no_cluster(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ResponseFlags::NoClusterFound,
            "cluster_not_found",
            "",
            reason,
        )
    }

    /// 503 `UH`.
    pub(crate) fn no_healthy_upstream() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ResponseFlags::NoHealthyUpstream,
            "no_healthy_upstream",
            "no healthy upstream",
            "no endpoint is ready",
        )
    }

    /// 503 `UF`.
    pub(crate) fn connect_failure(flags: ResponseFlags, reason: String) -> Self {
        let text = format!(
            "upstream connect error or disconnect/reset before headers. reset reason: \
             remote connection failure, transport failure reason: delayed connect error: {reason}"
        );
        Self {
            text: text.into(),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                flags,
                "upstream_reset_before_response_started{remote_connection_failure}",
                "",
                reason,
            )
        }
    }

    /// 503 `UC`: the upstream went away before it answered.
    pub(crate) fn upstream_reset(reason: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ResponseFlags::UpstreamConnectionTermination,
            "upstream_reset_before_response_started{connection_termination}",
            "upstream connect error or disconnect/reset before headers. reset reason: \
             connection termination",
            reason,
        )
    }

    /// 502 `UPE`: what the upstream sent is not HTTP.
    pub(crate) fn upstream_protocol(reason: String) -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            ResponseFlags::UpstreamProtocolError,
            "upstream_reset_before_response_started{protocol_error}",
            "upstream connect error or disconnect/reset before headers. reset reason: \
             protocol error",
            reason,
        )
    }

    /// 504 `UT`.
    pub(crate) fn timeout(per_try: bool) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            ResponseFlags::UpstreamRequestTimeout,
            if per_try { "upstream_per_try_timeout" } else { "response_timeout" },
            "upstream request timeout",
            if per_try { "a try took too long" } else { "the request took too long" },
        )
    }

    /// 503 `UO`.
    pub(crate) fn overflow(reason: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ResponseFlags::UpstreamOverflow,
            "upstream_reset_before_response_started{overflow}",
            "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            reason,
        )
    }

    /// 403.
    pub(crate) fn denied(details: String, reason: String) -> Self {
        Self {
            details: details.into(),
            ..Self::new(
                StatusCode::FORBIDDEN,
                ResponseFlags::UnauthorizedExternalService,
                "",
                "RBAC: access denied",
                reason,
            )
        }
    }

    /// `fault.abort`.
    pub(crate) fn fault(status: StatusCode, grpc_status: Option<u8>) -> Self {
        Self {
            grpc_status,
            ..Self::new(
                status,
                ResponseFlags::FaultInjected,
                "fault_filter_abort",
                "fault filter abort",
                "aborted by fault injection",
            )
        }
    }

    /// The gRPC status that the answer stands for (Envoy
    /// `Grpc::Utility::httpToGrpcStatus`).
    pub(crate) fn grpc_code(&self) -> u8 {
        self.grpc_status.unwrap_or(match self.status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }

    /// The message. A gRPC client gets HTTP 200 with the status in its own terms.
    pub(crate) fn response(&self, grpc: bool) -> Response<Body> {
        if grpc || self.grpc_status.is_some() {
            let mut response = Response::new(Body::Empty);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.grpc_code())));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.text))
                && !message.is_empty()
            {
                headers.insert(GRPC_MESSAGE, message);
            }
            return response;
        }
        let mut response = Response::new(Body::full(self.text.to_string()));
        *response.status_mut() = self.status;
        // Said, because between nodes a body's length is not implied.
        let length = HeaderValue::from(self.text.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
        if !self.text.is_empty() {
            let plain = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(CONTENT_TYPE, plain);
        }
        response
    }
}

/// `grpc-message` as the gRPC wire format wants it.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_clients_get_their_own_terms() {
        let denied = LocalReply::denied("d".into(), "r".into());
        let response = denied.response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "7");
        assert_eq!(response.headers()["grpc-message"], "RBAC: access denied");
        let response = denied.response(false);
        assert_eq!(
            (response.status(), response.headers().get("grpc-status")),
            (StatusCode::FORBIDDEN, None)
        );
        assert_eq!(percent_encoded("a%\n"), "a%25%0A");
    }
}
