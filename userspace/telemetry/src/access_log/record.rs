//! What one line of the access log can tell.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use fairlead_types::{ResponseFlags, SpiffeId};
use http::HeaderValue;

use crate::istio::{Reporter, WorkloadLabels};

/// The values of those headers that the format mentions, in its order. Taking them costs a
/// reference count each.
#[derive(Clone, Debug, Default)]
pub struct Captured(pub(crate) Vec<Option<HeaderValue>>);

/// One request or connection that has ended. What does not apply stays at its default and is
/// logged as `-` (text) or `null` (JSON).
#[derive(Clone, Debug)]
pub struct LogRecord<'a> {
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// `HTTP/1.1`, `HTTP/2`; `None` for TCP.
    pub protocol: Option<&'a str>,
    /// `:method`.
    pub method: Option<&'a str>,
    /// `:path`, with query.
    pub path: Option<&'a str>,
    /// `:authority` or `Host`.
    pub authority: Option<&'a str>,
    /// `:scheme`.
    pub scheme: Option<&'a str>,
    /// From [`LogFormat::capture_request`](super::LogFormat::capture_request).
    pub request_headers: Captured,
    /// From [`LogFormat::capture_response`](super::LogFormat::capture_response).
    pub response_headers: Captured,
    /// Status code; `None` for TCP and where there was no response: logged as 0.
    pub response_code: Option<u16>,
    /// `grpc-status`.
    pub grpc_status: Option<u16>,
    /// Why it ended so.
    pub flags: ResponseFlags,
    /// Envoy's words for how a response came to be: `via_upstream`, `route_not_found`…
    pub response_code_details: Option<&'a str>,
    /// Envoy's words for how a connection ended.
    pub connection_termination_details: Option<&'a str>,
    /// Why the transport to the upstream failed.
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// For every refusal: the reason in words, for people.
    pub reason: Option<&'a str>,
    /// Bytes from the client (bodies only, for HTTP).
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub upstream_cluster: Option<&'a str>,
    /// The proxy's address on the way to the endpoint.
    pub upstream_local: Option<SocketAddr>,
    /// Time that the upstream took, for `x-envoy-upstream-service-time` where the response does
    /// not carry it.
    pub upstream_service_time: Option<Duration>,
    /// The address that the client asked for.
    pub downstream_local: Option<SocketAddr>,
    /// The client.
    pub downstream_remote: Option<SocketAddr>,
    /// SNI.
    pub requested_server_name: Option<&'a str>,
    /// Name of the route.
    pub route_name: Option<&'a str>,
    /// Which side logs.
    pub reporter: Option<Reporter>,
    /// The client's workload.
    pub source: Option<&'a WorkloadLabels>,
    /// The server's workload.
    pub destination: Option<&'a WorkloadLabels>,
    /// Identity of the downstream, as verified.
    pub downstream_identity: Option<&'a SpiffeId>,
    /// Identity of the upstream, as verified.
    pub upstream_identity: Option<&'a SpiffeId>,
}

impl Default for LogRecord<'_> {
    fn default() -> Self {
        Self {
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            protocol: None,
            method: None,
            path: None,
            authority: None,
            scheme: None,
            request_headers: Captured::default(),
            response_headers: Captured::default(),
            response_code: None,
            grpc_status: None,
            flags: ResponseFlags::None,
            response_code_details: None,
            connection_termination_details: None,
            upstream_transport_failure_reason: None,
            reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local: None,
            upstream_service_time: None,
            downstream_local: None,
            downstream_remote: None,
            requested_server_name: None,
            route_name: None,
            reporter: None,
            source: None,
            destination: None,
            downstream_identity: None,
            upstream_identity: None,
        }
    }
}
