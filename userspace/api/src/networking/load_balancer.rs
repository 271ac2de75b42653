//! Istio `networking/v1.LoadBalancerSettings`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::ProtoDuration;

/// `LoadBalancerSettings`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("simple consistentHash")))]
pub struct LoadBalancer {
    /// One of the standard algorithms; not with `consistentHash`.
    pub simple: Option<SimpleLb>,
    /// Affinity by a hash.
    pub consistent_hash: Option<ConsistentHash>,
    /// Preferences between localities.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Zone-aware routing by capacity.
    pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    /// Deprecated form of `warmup.duration`.
    pub warmup_duration_secs: Option<ProtoDuration>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// `LoadBalancerSettings.SimpleLB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The mesh's choice: LEAST_REQUEST.
    #[default]
    Unspecified,
    /// Deprecated name of LEAST_REQUEST.
    LeastConn,
    /// Any endpoint.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// Each in turn.
    RoundRobin,
    /// The one of two random endpoints with fewer requests under way.
    LeastRequest,
}

/// `LoadBalancerSettings.ConsistentHashLB`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("httpHeaderName httpCookie useSourceIp httpQueryParameterName"), transform = crate::schema::one_of("ringHash maglev")))]
pub struct ConsistentHash {
    /// Hash of a header; exactly one of the four keys is set.
    pub http_header_name: Option<String>,
    /// Hash of a cookie, which is made if absent.
    pub http_cookie: Option<HttpCookie>,
    /// Hash of the client address.
    pub use_source_ip: Option<bool>,
    /// Hash of a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Hashes by a ring (ketama).
    pub ring_hash: Option<RingHash>,
    /// Hashes by a Maglev table.
    pub maglev: Option<Maglev>,
    /// Deprecated form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
}

/// `ConsistentHashLB.HTTPCookie`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct HttpCookie {
    /// Name of the cookie.
    pub name: String,
    /// Path of a cookie that is made.
    pub path: String,
    /// Life of a cookie that is made; a session cookie if 0.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::any_duration"))]
    pub ttl: Option<ProtoDuration>,
    /// Further attributes of a cookie that is made.
    pub attributes: Vec<CookieAttribute>,
}

/// `ConsistentHashLB.HTTPCookie.Attribute`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct CookieAttribute {
    /// Name, such as `SameSite`.
    pub name: String,
    /// Value of the attribute.
    pub value: String,
}

/// `ConsistentHashLB.RingHash`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Least number of virtual nodes; 1024 if absent.
    pub minimum_ring_size: Option<u64>,
}

/// `ConsistentHashLB.MagLev`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Size of the table, a prime; 65537 if absent.
    pub table_size: Option<u64>,
}

/// `LocalityLoadBalancerSetting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityLbSetting {
    /// Explicit weights per locality; only one of the first three lists is set.
    pub distribute: Vec<LocalityDistribute>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<LocalityFailover>,
    /// Labels by which endpoints are ordered.
    pub failover_priority: Vec<String>,
    /// Whether it is on; true if absent.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub enabled: Option<bool>,
}

/// `LocalityLoadBalancerSetting.Distribute`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityDistribute {
    /// Locality of the client: `region/zone/subzone`, `*` at the end.
    pub from: String,
    /// Share of each locality; they sum up to 100.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::shares"))]
    pub to: BTreeMap<String, u32>,
}

/// `LocalityLoadBalancerSetting.Failover`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityFailover {
    /// Region that fails.
    pub from: String,
    /// Region that takes over.
    pub to: String,
}

/// `LoadBalancerSettings` zone-aware routing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAwareLbSetting {
    /// Whether it is on.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub enabled: Option<bool>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<LocalityFailover>,
    /// Labels by which endpoints are ordered.
    pub failover_priority: Vec<String>,
    /// Least number of endpoints for zone awareness.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4_294_967_295_u64), transform = crate::schema::nullable))]
    pub min_cluster_size: Option<u64>,
}

/// `WarmupConfiguration`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("duration")))]
pub struct Warmup {
    /// How long an endpoint counts as new.
    pub duration: Option<ProtoDuration>,
    /// Share to begin with, percent; 10 if absent.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100), transform = crate::schema::nullable))]
    pub minimum_percent: Option<f64>,
    /// Curve of the increase; 1.0 (linear) if absent.
    #[cfg_attr(feature = "schema", schemars(range(min = 1), transform = crate::schema::nullable))]
    pub aggression: Option<f64>,
}
