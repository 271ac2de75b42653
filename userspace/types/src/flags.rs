//! Why a connection or request ended as it did: Envoy's response flags, because Istio's
//! dashboards and alerts know them, and a reason in words, because people read logs.

use std::fmt;

/// Envoy's `%RESPONSE_FLAGS%`, those that a Fairlead proxy can set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// `-`
    #[default]
    None,
    /// `UF`: connecting to the upstream failed.
    UpstreamConnectionFailure,
    /// `UH`: no healthy upstream.
    NoHealthyUpstream,
    /// `UT`: upstream request timeout.
    UpstreamRequestTimeout,
    /// `URX`: retry or connect-attempt limit exceeded.
    UpstreamRetryLimitExceeded,
    /// `UC`: upstream connection termination.
    UpstreamConnectionTermination,
    /// `UO`: upstream overflow (circuit breaking).
    UpstreamOverflow,
    /// `UPE`: the upstream broke the protocol.
    UpstreamProtocolError,
    /// `NR`: no route configured.
    NoRouteFound,
    /// `NC`: the destination of the route does not exist.
    NoClusterFound,
    /// `DI`: delayed by fault injection.
    DelayInjected,
    /// `FI`: aborted by fault injection.
    FaultInjected,
    /// `DC`: downstream connection termination.
    DownstreamConnectionTermination,
    /// `DPE`: the downstream broke the protocol.
    DownstreamProtocolError,
    /// `DT`: a request or connection exceeded its maximum duration.
    DurationTimeout,
    /// `UAEX`: denied by authorization.
    UnauthorizedExternalService,
}

impl ResponseFlags {
    /// The short form that Envoy logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamConnectionFailure => "UF",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamProtocolError => "UPE",
            Self::NoRouteFound => "NR",
            Self::NoClusterFound => "NC",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::DurationTimeout => "DT",
            Self::UnauthorizedExternalService => "UAEX",
        }
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class of a refused connection: the value of `response_flags` on
/// `istio_tcp_connections_failed_total`, with ztunnel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Denied by AuthorizationPolicy.
    Deny,
    /// Plaintext on a port that requires mTLS, or no flow entry for a captured connection.
    NetworkPolicy,
    /// The upstream could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// A certificate is missing, expired, or speaks for somebody else.
    IdentityError,
    /// A bound was reached: too many connections, sessions or map entries.
    Overload,
    /// No route, or the mesh forbids unknown destinations (REGISTRY_ONLY).
    NoRoute,
}

impl Refusal {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "DENY",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::Overload => "OVERLOAD",
            Self::NoRoute => "NO_ROUTE",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
