//! Istio `networking/v1.ConnectionPoolSettings`, `OutlierDetection` and retry budget.

use serde::Deserialize;

use crate::ProtoDuration;

/// `ConnectionPoolSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPoolSettings {
    /// Limits of connections, for TCP and HTTP.
    pub tcp: Option<TcpSettings>,
    /// Limits of HTTP requests and connections.
    pub http: Option<HttpSettings>,
}

/// `ConnectionPoolSettings.TCPSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// Connections to the destination at a time; 2^32-1 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub max_connections: i32,
    /// Limit of a connect; 10 s if absent.
    pub connect_timeout: Option<ProtoDuration>,
    /// `SO_KEEPALIVE` and its timers.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<ProtoDuration>,
    /// Connections without traffic end after this; 1 h if absent.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::any_duration"))]
    pub idle_timeout: Option<ProtoDuration>,
}

/// `TCPSettings.TcpKeepalive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: u32,
    /// Idle time before the first probe.
    pub time: Option<ProtoDuration>,
    /// Time between probes.
    pub interval: Option<ProtoDuration>,
}

/// `ConnectionPoolSettings.HTTPSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests that may wait for a connection.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub http1_max_pending_requests: i32,
    /// Requests under way at a time.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub http2_max_requests: i32,
    /// Requests before a connection is closed; unlimited if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub max_requests_per_connection: i32,
    /// Retries under way at a time.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub max_retries: i32,
    /// Connections without requests end after this; 1 h if absent.
    pub idle_timeout: Option<ProtoDuration>,
    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Keep the client's protocol towards the upstream.
    pub use_client_protocol: bool,
    /// Streams of one HTTP/2 connection.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub max_concurrent_streams: i32,
    /// PINGs of HTTP/2 connections.
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// HTTP/2 keepalive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Http2KeepAlive {
    /// Time between PINGs.
    pub interval: Option<ProtoDuration>,
    /// How long an answer may take.
    pub timeout: Option<ProtoDuration>,
}

/// `HTTPSettings.H2UpgradePolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// As MeshConfig says.
    #[default]
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// `OutlierDetection`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated form of the consecutive limits.
    pub consecutive_errors: i32,
    /// Count local-origin failures apart from those of the upstream.
    pub split_external_local_origin_errors: bool,
    /// Consecutive local-origin failures before ejection; 5 if absent.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Consecutive 502, 503, 504 before ejection; off if absent or 0.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub consecutive_gateway_errors: Option<u32>,
    /// Consecutive 5xx before ejection; 5 if absent, off if 0.
    #[serde(rename = "consecutive5xxErrors", alias = "consecutive_5xx_errors")]
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub consecutive_5xx_errors: Option<u32>,
    /// Time between sweeps; 10 s if absent.
    pub interval: Option<ProtoDuration>,
    /// Least time of an ejection, times the number of ejections; 30 s if absent.
    pub base_ejection_time: Option<ProtoDuration>,
    /// Most endpoints ejected at a time, percent; 10 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100)))]
    pub max_ejection_percent: i32,
    /// Below this share of healthy endpoints, percent, nothing is ejected any more.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100)))]
    pub min_health_percent: i32,
    /// Status codes that count as errors besides 5xx.
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 100, max = 599))))]
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// `TrafficPolicy.RetryBudget`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Retries as a share of the requests under way, percent; 20 if absent.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100), transform = crate::schema::nullable))]
    pub percent: Option<f64>,
    /// Retries that are always allowed; 3 if 0.
    pub min_retry_concurrency: u32,
    /// Window over which requests are counted.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::any_duration"))]
    pub budget_interval: Option<ProtoDuration>,
}
