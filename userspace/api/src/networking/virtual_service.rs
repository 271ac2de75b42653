//! Istio `networking/v1.VirtualService`.

use serde::Deserialize;

use super::{
    CorsPolicy, Delegate, Fault, Headers, HttpDirectResponse, HttpMatch, HttpMirrorPolicy,
    HttpRedirect, HttpRetry, HttpRewrite, PortSelector,
};
use crate::{Object, Percent, ProtoDuration, StringMap};

/// Routing of one or more hosts.
pub type VirtualService = Object<VirtualServiceSpec>;

/// `spec` of a [`VirtualService`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "[has(self.http) && self.http.size() > 0, has(self.tls) && self.tls.size() > 0, has(self.tcp) && self.tcp.size() > 0].exists(r, r)",
        "there is no route: at least one of http, tls and tcp"
    ), transform = crate::schema::rule(
        "(has(self.hosts) && self.hosts.size() > 0) || !(has(self.gateways) || has(self.tls) || has(self.tcp))",
        "a VirtualService without hosts is a delegate: it has http routes alone"
    )))]
pub struct VirtualServiceSpec {
    /// Destinations as the client addresses them: short name (of the rule's namespace), FQDN,
    /// `*.` wildcard, or IP address. Empty only in a delegate.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1, max = 255))))]
    pub hosts: Vec<String>,
    /// Gateways it applies to (`namespace/name`), and `mesh` for traffic within the mesh, which
    /// is what an empty list means.
    pub gateways: Vec<String>,
    /// HTTP routes; the first that matches is taken.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::max_items(crate::schema::MOST_ROUTES)))]
    pub http: Vec<HttpRoute>,
    /// Routes of passed-through TLS by SNI.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::max_items(crate::schema::MOST_ROUTES)))]
    pub tls: Vec<TlsRoute>,
    /// Routes of opaque TCP.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::max_items(crate::schema::MOST_ROUTES)))]
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see the rule: `.`, `*` or names; empty means all.
    pub export_to: Vec<String>,
}

/// `HTTPRoute`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "[has(self.route) && self.route.size() > 0, has(self.redirect), has(self.directResponse), has(self.delegate)].filter(a, a).size() == 1",
        "exactly one of route, redirect, directResponse and delegate"
    ), transform = crate::schema::rule(
        "!((has(self.redirect) || has(self.directResponse)) && (has(self.fault) || has(self.rewrite)))",
        "fault and rewrite stand together with route alone"
    ), transform = crate::schema::exclusive("mirror mirrors", "only one of mirror and mirrors can be set"), transform = crate::schema::alias("mirrorPercent", "mirror_percent")))]
pub struct HttpRoute {
    /// Name, for logs and statistics.
    pub name: String,
    /// Alternatives, each a conjunction; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Weighted destinations.
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect instead.
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed response instead.
    pub direct_response: Option<HttpDirectResponse>,
    /// Continue in another VirtualService.
    pub delegate: Option<Delegate>,
    /// Rewrite of path and authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// Limit of the whole request, retries included; off by default.
    pub timeout: Option<ProtoDuration>,
    /// When and how often a request is tried again.
    pub retries: Option<HttpRetry>,
    /// Faults that are injected.
    pub fault: Option<Fault>,
    /// Service that gets a copy of each request.
    pub mirror: Option<Destination>,
    /// Services that get copies of requests.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Deprecated: share of `mirror`, whole percent.
    #[cfg_attr(feature = "schema", schemars(range(max = 100), transform = crate::schema::nullable))]
    pub mirror_percent: Option<u32>,
    /// Share of `mirror`; 100 if absent.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin policy (CORS).
    pub cors_policy: Option<CorsPolicy>,
    /// Header changes of all destinations.
    pub headers: Option<Headers>,
}

/// `HTTPRouteDestination`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("destination")))]
pub struct HttpRouteDestination {
    /// Where requests go.
    pub destination: Option<Destination>,
    /// Share among the siblings. A single destination takes all; otherwise 0 means none.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub weight: i32,
    /// Header changes of this destination.
    pub headers: Option<Headers>,
}

/// `Destination`: a service of the registry, or a subset of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("host")))]
pub struct Destination {
    /// Name of the service; a short name is of the rule's namespace.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), regex(pattern = r"^[^*]")))]
    pub host: String,
    /// Subset of the service's DestinationRule.
    pub subset: String,
    /// Port of the service; may be absent if it has only one (or keeps the request's).
    pub port: Option<PortSelector>,
}

/// `RouteDestination`: a weighted destination of TLS and TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("destination")))]
pub struct RouteDestination {
    /// Where connections go.
    pub destination: Option<Destination>,
    /// Share among the siblings. A single destination takes all; otherwise 0 means none.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub weight: i32,
}

/// `TLSRoute`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("match route")))]
pub struct TlsRoute {
    /// Alternatives; required.
    #[serde(rename = "match")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub matches: Vec<TlsMatch>,
    /// Weighted destinations.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub route: Vec<RouteDestination>,
}

/// `TLSMatchAttributes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("sniHosts")))]
pub struct TlsMatch {
    /// SNI names; `*.` wildcards allowed; required.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub sni_hosts: Vec<String>,
    /// Addresses or CIDRs of the destination.
    pub destination_subnets: Vec<String>,
    /// Port of the destination.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: Option<u32>,
    /// Labels that the client workload must carry.
    pub source_labels: StringMap,
    /// Gateways this match applies to; overrides the rule's.
    pub gateways: Vec<String>,
    /// Namespace of the client workload.
    pub source_namespace: String,
}

/// `TCPRoute`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("route")))]
pub struct TcpRoute {
    /// Alternatives; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    /// Weighted destinations.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub route: Vec<RouteDestination>,
}

/// `L4MatchAttributes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct L4Match {
    /// Addresses or CIDRs of the destination.
    pub destination_subnets: Vec<String>,
    /// Port of the destination.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: Option<u32>,
    /// Address or CIDR of the client; the API marks it not implemented.
    pub source_subnet: String,
    /// Labels that the client workload must carry.
    pub source_labels: StringMap,
    /// Gateways this match applies to; overrides the rule's.
    pub gateways: Vec<String>,
    /// Namespace of the client workload.
    pub source_namespace: String,
}
