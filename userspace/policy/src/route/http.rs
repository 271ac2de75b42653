//! HTTP routes: ordered, first match wins (VirtualService `http[]`).

use std::borrow::Cow;
use std::sync::Arc;

use super::Weighted;
use crate::filter::HttpFilters;
use crate::matcher::{HeaderKey, StringMatch};
use crate::{RequestView, SourceView};
use fairlead_types::Labels;
use percent_encoding::percent_decode_str;

/// The routes of one service port, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRouteTable {
    /// First match wins.
    pub routes: Box<[HttpRoute]>,
}

/// One `http[]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// `route_name` in the access log: the VirtualService route's `name`, or `default`.
    pub name: Arc<str>,
    /// OR of these; empty matches everything.
    pub matches: Box<[HttpMatch]>,
    /// What happens to a matching request.
    pub action: HttpAction,
    /// What is done to the request and its response on the way.
    pub filters: HttpFilters,
}

/// What happens to a matching request.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpAction {
    /// To one of these destinations.
    Forward(Weighted),
    /// No destination could be resolved: 503 with flag `NC`.
    NoCluster,
}

/// One `match` entry: AND of its fields (VirtualService `HTTPMatchRequest`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// `uri`, on the normalized path without query.
    pub path: Option<StringMatch>,
    /// `ignoreUriCase`.
    pub ignore_path_case: bool,
    /// `scheme`.
    pub scheme: Option<StringMatch>,
    /// `method`.
    pub method: Option<StringMatch>,
    /// `authority`.
    pub authority: Option<StringMatch>,
    /// `headers`: each has to be present and match.
    pub headers: Box<[(HeaderKey, StringMatch)]>,
    /// `withoutHeaders`: none may be present and match.
    pub without_headers: Box<[(HeaderKey, StringMatch)]>,
    /// `queryParams`.
    pub query_params: Box<[(Box<str>, StringMatch)]>,
    /// `port` of the service.
    pub port: Option<u16>,
    /// `sourceLabels`.
    pub source_labels: Labels,
    /// `sourceNamespace`.
    pub source_namespace: Option<Box<str>>,
}

/// The outcome of a selection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selected<'a> {
    /// The route.
    pub route: &'a HttpRoute,
    /// Which of its matches it was; `None` when the route matches everything. A prefix rewrite
    /// depends on it.
    pub matched: Option<&'a HttpMatch>,
}

impl HttpRouteTable {
    /// The first route that matches. `service_port` is the port of the service that the request
    /// was sent to.
    #[must_use]
    pub fn select(
        &self,
        request: &RequestView<'_>,
        source: &SourceView<'_>,
        service_port: u16,
    ) -> Option<Selected<'_>> {
        self.routes.iter().find_map(|route| {
            if route.matches.is_empty() {
                return Some(Selected { route, matched: None });
            }
            let matched =
                route.matches.iter().find(|m| m.matches(request, source, service_port))?;
            Some(Selected { route, matched: Some(matched) })
        })
    }
}

impl HttpMatch {
    /// Whether all its fields match.
    #[must_use]
    pub fn matches(
        &self,
        request: &RequestView<'_>,
        source: &SourceView<'_>,
        service_port: u16,
    ) -> bool {
        // The cheap ones first.
        self.port.is_none_or(|port| port == service_port)
            && self.source_namespace.as_deref().is_none_or(|ns| ns == source.namespace)
            && source.labels.matches(&self.source_labels)
            && self.method.as_ref().is_none_or(|m| m.matches(request.method.as_str()))
            && self.scheme.as_ref().is_none_or(|m| m.matches(request.scheme))
            && self.authority.as_ref().is_none_or(|m| m.matches(request.authority))
            && self.path.as_ref().is_none_or(|m| {
                if self.ignore_path_case {
                    m.matches_ignore_case(request.path)
                } else {
                    m.matches(request.path)
                }
            })
            && self
                .headers
                .iter()
                .all(|(key, m)| key.value(request).is_some_and(|value| m.matches_bytes(&value)))
            && self.without_headers.iter().all(|(key, m)| !without(key, m, request))
            && self.query_params.iter().all(|(name, m)| {
                query_value(request.query.unwrap_or_default(), name)
                    .is_some_and(|value| m.matches(&value))
            })
    }
}

/// Whether a header of `withoutHeaders` is there and matches; one that is missing counts as
/// empty, except for a mere presence check (Istio `TreatMissingHeaderAsEmpty`).
fn without(key: &HeaderKey, wanted: &StringMatch, request: &RequestView<'_>) -> bool {
    match key.value(request) {
        Some(value) => wanted.matches_bytes(&value),
        None => *wanted != StringMatch::Present && wanted.matches(""),
    }
}

/// The first value of a query parameter, decoded (Envoy `parseAndDecodeQueryString`).
fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode_str(key).decode_utf8_lossy();
        (key == name).then(|| percent_decode_str(value).decode_utf8_lossy())
    })
}

#[cfg(test)]
mod tests;
