//! Istio `networking/v1.HTTPMatchRequest`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{StringMap, StringMatch};

/// A conjunction of conditions on a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Name, appended to the route's in logs.
    pub name: String,
    /// Path of the request.
    pub uri: Option<StringMatch>,
    /// Scheme of the request: `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Method of the request.
    pub method: Option<StringMatch>,
    /// Host of the request (`Host`, `:authority`).
    pub authority: Option<StringMatch>,
    /// Headers by lower-case name; `{}` means present.
    pub headers: BTreeMap<String, StringMatch>,
    /// Port of the host that is addressed.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: Option<u32>,
    /// Labels that the client workload must carry.
    pub source_labels: StringMap,
    /// Gateways this match applies to; overrides the rule's.
    pub gateways: Vec<String>,
    /// Query parameters; `{}` means present.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Whether `uri` (exact, prefix) ignores case.
    pub ignore_uri_case: bool,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Namespace of the client workload.
    pub source_namespace: String,
    /// Prefix of the statistics of this route.
    pub stat_prefix: String,
}
