//! What a `VirtualService` does to a request: redirect, rewrite, retry, fault, mirror, CORS,
//! headers (Istio `networking/v1`, messages of the same names).

use serde::Deserialize;

use super::Destination;
use crate::{Percent, ProtoDuration, StringMap, StringMatch};

/// `HTTPRedirect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("port derivePort")))]
pub struct HttpRedirect {
    /// New path.
    pub uri: String,
    /// New host.
    pub authority: String,
    /// New port; at most one of this and `derivePort`.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: Option<u32>,
    /// How the port is found.
    pub derive_port: Option<DerivePort>,
    /// New scheme: http or https.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^(https?)?$")))]
    pub scheme: String,
    /// Status of the answer: 301 (if unset), 302, 303, 307 or 308.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "self in [0, 301, 302, 303, 307, 308]",
        "a redirect is 301, 302, 303, 307 or 308"
    )))]
    pub redirect_code: u32,
    /// Replaces the matched prefix of the path; not with `uri`.
    pub prefix_rewrite: String,
}

/// `HTTPRedirect.RedirectPortSelection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 for http, 443 for https.
    #[default]
    FromProtocolDefault,
    /// The port of the request.
    FromRequestPort,
}

/// `HTTPDirectResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("status")))]
pub struct HttpDirectResponse {
    /// Status of the answer.
    #[cfg_attr(feature = "schema", schemars(range(min = 100, max = 599)))]
    pub status: u32,
    /// Body of the answer; empty if absent.
    pub body: Option<HttpResponseBody>,
}

/// `HTTPBody`: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("string bytes")))]
pub struct HttpResponseBody {
    /// The body as text.
    pub string: Option<String>,
    /// The body as base64.
    #[cfg_attr(feature = "schema", schemars(extend("format" = "byte")))]
    pub bytes: Option<String>,
}

/// `Delegate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    /// Name of the VirtualService.
    pub name: String,
    /// Its namespace; the delegating one's if empty.
    pub namespace: String,
}

/// `HTTPRewrite`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("uri uriRegexRewrite", "only one of uri and uriRegexRewrite can be set")))]
pub struct HttpRewrite {
    /// Replaces the path, or the matched prefix if the match was by prefix.
    pub uri: String,
    /// Replaces the host (`Host`, `:authority`).
    pub authority: String,
    /// Rewrites the path by a regular expression; not with `uri`.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// `RegexRewrite`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// RE2 expression that the path has to match.
    #[serde(rename = "match")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 1024)))]
    pub pattern: String,
    /// Replacement; `\1` is the first group.
    pub rewrite: String,
}

/// `HTTPRetry`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// How many retries; 0 turns them off.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub attempts: i32,
    /// Limit of each attempt, the first included; the route's timeout if absent.
    pub per_try_timeout: Option<ProtoDuration>,
    /// Conditions, comma-separated: Envoy's names and status codes.
    pub retry_on: String,
    /// Whether other localities are tried.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub retry_remote_localities: Option<bool>,
    /// Whether hosts that failed are avoided; true if absent.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base of the exponential pause; 25 ms if absent.
    pub backoff: Option<ProtoDuration>,
}

/// `HTTPFaultInjection`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Delays before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answers with an error instead of forwarding.
    pub abort: Option<FaultAbort>,
}

/// `HTTPFaultInjection.Delay`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("fixedDelay exponentialDelay")))]
pub struct FaultDelay {
    /// Deprecated: share of requests in whole percent.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100)))]
    pub percent: Option<i32>,
    /// How long a request waits.
    pub fixed_delay: Option<ProtoDuration>,
    /// Mean of an exponential distribution; Istio never implemented it.
    pub exponential_delay: Option<ProtoDuration>,
    /// Share of requests; all if absent.
    pub percentage: Option<Percent>,
}

/// `HTTPFaultInjection.Abort`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("httpStatus grpcStatus http2Error")))]
pub struct FaultAbort {
    /// HTTP status of the answer; exactly one of the three errors is set.
    #[cfg_attr(feature = "schema", schemars(range(min = 200, max = 599)))]
    pub http_status: Option<i32>,
    /// gRPC status name of the answer, such as `UNAVAILABLE`.
    pub grpc_status: Option<String>,
    /// HTTP/2 error; Istio never implemented it.
    pub http2_error: Option<String>,
    /// Share of requests; all if absent.
    pub percentage: Option<Percent>,
}

/// `HTTPMirrorPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("destination")))]
pub struct HttpMirrorPolicy {
    /// Who gets the copies.
    pub destination: Option<Destination>,
    /// Share of requests; all if absent.
    pub percentage: Option<Percent>,
}

/// `CorsPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Deprecated form of `allowOrigins`: exact origins.
    pub allow_origin: Vec<String>,
    /// Origins that are allowed.
    pub allow_origins: Vec<StringMatch>,
    /// Methods that are allowed (`Access-Control-Allow-Methods`).
    pub allow_methods: Vec<String>,
    /// Request headers that are allowed (`Access-Control-Allow-Headers`).
    pub allow_headers: Vec<String>,
    /// Response headers that scripts may read (`Access-Control-Expose-Headers`).
    pub expose_headers: Vec<String>,
    /// How long the answer to a preflight may be kept (`Access-Control-Max-Age`).
    pub max_age: Option<ProtoDuration>,
    /// Whether credentials may be sent (`Access-Control-Allow-Credentials`).
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub allow_credentials: Option<bool>,
    /// What happens to a preflight of an origin that is not allowed.
    pub unmatched_preflights: UnmatchedPreflights,
}

/// `CorsPolicy.UnmatchedPreflights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// FORWARD.
    #[default]
    Unspecified,
    /// Goes to the upstream.
    Forward,
    /// Is answered without CORS headers.
    Ignore,
}

/// `Headers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Changes before the request is forwarded.
    pub request: Option<HeaderOperations>,
    /// Changes before the response is returned.
    pub response: Option<HeaderOperations>,
}

/// `Headers.HeaderOperations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOperations {
    /// Headers that are overwritten, by name.
    pub set: StringMap,
    /// Headers that are added, by name.
    pub add: StringMap,
    /// Headers that are removed.
    pub remove: Vec<String>,
}
