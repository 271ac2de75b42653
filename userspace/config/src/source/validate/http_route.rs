//! An HTTP route of a VirtualService: what it matches, and that its actions go together (Istio
//! `validateHTTPRoute`).

use std::collections::BTreeMap;

use fairlead_api::StringMatch;
use fairlead_api::networking::{HttpMatch, HttpRoute};

use super::virtual_service::other_gateways;
use super::{checks, http_action};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(super) fn http_route(route: &HttpRoute, delegate: bool, at: &Path<'_>, sink: &mut Sink<'_>) {
    conflicts(route, delegate, at, sink);
    let match_at = at.field("match");
    for (index, one) in route.matches.iter().enumerate() {
        http_match(one, &match_at.index(index), sink);
    }
    let to = at.field("route");
    checks::weighted(sink, &to, route.route.iter().map(|r| (r.destination.as_ref(), r.weight)));
    for (index, one) in route.route.iter().enumerate() {
        http_action::headers(one.headers.as_ref(), &to.index(index).field("headers"), sink);
    }
    checks::duration(sink, &at.field("timeout"), route.timeout);
    http_action::actions(route, at, sink);
}

/// Which of a route's parts exclude each other.
fn conflicts(route: &HttpRoute, delegate: bool, at: &Path<'_>, sink: &mut Sink<'_>) {
    const ONE: &str = "one of route, redirect, directResponse, delegate";
    let answers = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let mut there = answers.iter().filter(|(_, there)| *there).map(|(field, _)| *field);
    let Some(first) = there.next() else {
        return sink.error(&at.field("route"), "is missing", ONE);
    };
    for other in there {
        sink.error(&at.field(other), format!("cannot stand beside {first}"), ONE);
    }
    if delegate && route.delegate.is_some() {
        let message = "a delegate cannot delegate again";
        sink.error(&at.field("delegate"), message, "hosts, or no delegate");
    }
    // Nothing is forwarded, so nothing of this could have an effect.
    if matches!(first, "redirect" | "directResponse") {
        for (field, there) in
            [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())]
        {
            if there {
                let message = format!("cannot stand beside {first}");
                sink.error(&at.field(field), message, "only together with route");
            }
        }
    }
}

fn http_match(one: &HttpMatch, at: &Path<'_>, sink: &mut Sink<'_>) {
    let HttpMatch {
        name: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        port,
        source_labels,
        gateways,
        query_params,
        ignore_uri_case,
        without_headers,
        source_namespace: namespace,
        stat_prefix: _,
    } = one;
    for (field, value) in
        [("uri", uri), ("scheme", scheme), ("method", method), ("authority", authority)]
    {
        if let Some(value) = value {
            checks::string_match(sink, &at.field(field), value, false);
        }
    }
    for (field, map) in [("headers", headers), ("withoutHeaders", without_headers)] {
        header_matches(map, &at.field(field), sink);
    }
    let params = at.field("queryParams");
    for (name, value) in query_params {
        checks::string_match(sink, &params.key(name), value, true);
    }
    if *ignore_uri_case && matches!(uri, Some(StringMatch::Regex(_))) {
        let message = "has no effect on a regular expression";
        sink.warn(&at.field("ignoreUriCase"), message, "(?i) within the expression");
    }
    if let Some(port) = port {
        checks::port(sink, &at.field("port"), *port);
    }
    checks::labels(sink, &at.field("sourceLabels"), source_labels);
    checks::gateways(sink, &at.field("gateways"), gateways);
    other_gateways(gateways, &at.field("gateways"), sink);
    source_namespace(namespace, at, sink);
}

fn header_matches(map: &BTreeMap<String, StringMatch>, at: &Path<'_>, sink: &mut Sink<'_>) {
    for (name, value) in map {
        let at = at.key(name);
        if name.starts_with("@request.auth.claims") {
            let message = "routing by JWT claims is for gateways";
            sink.error(&at, message, "a header name");
            continue;
        }
        // Envoy's pseudo headers may be named like any other.
        checks::header_name(sink, &at, name.strip_prefix(':').unwrap_or(name));
        checks::string_match(sink, &at, value, true);
    }
}

pub(super) fn source_namespace(namespace: &str, at: &Path<'_>, sink: &mut Sink<'_>) {
    if !namespace.is_empty() && !checks::is_dns_label(namespace) {
        let message = format!("{namespace:?} is not a namespace");
        sink.error(&at.field("sourceNamespace"), message, checks::LABEL_RULE);
    }
}

/// Warns of routes that an earlier one leaves nothing to.
pub(super) fn unreachable(routes: &[HttpRoute], at: &Path<'_>, sink: &mut Sink<'_>) {
    // Comparing each match with all before it is quadratic; no person writes more.
    const MAX_COMPARED: usize = 200;
    let mut earlier: Vec<HttpMatch> = Vec::new();
    let mut all = false;
    for (index, route) in routes.iter().enumerate() {
        let at = at.index(index);
        if all {
            sink.warn(&at, "never used: an earlier route matches everything", "");
            continue;
        }
        all = route.matches.is_empty();
        for (number, one) in route.matches.iter().enumerate() {
            let nameless = HttpMatch { name: String::new(), ..one.clone() };
            if earlier.contains(&nameless) {
                let at_match = at.field("match");
                sink.warn(&at_match.index(number), "never used: an earlier route has it too", "");
            } else if earlier.len() < MAX_COMPARED {
                earlier.push(nameless);
            }
        }
    }
}
