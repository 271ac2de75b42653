//! VirtualService `http[]` to HTTP route tables.
//!
//! Fail closed: a match that cannot be expressed is widened to what can be, and its route then
//! answers 503; so does a route whose action is not supported. Nothing falls through to a later
//! route that its author did not mean.

use std::time::Duration;

use fairlead_api::networking as api;
use fairlead_api::{ProtoDuration, StringMap, StringMatch as ApiMatch};
use fairlead_policy::Percentage;
use fairlead_policy::filter::HttpFilters;
use fairlead_policy::filter::fault::{Abort, AbortWith, Delay, Fault, GrpcStatus};
use fairlead_policy::filter::headers::{Direction, HeaderEdit, HeaderOps};
use fairlead_policy::filter::retry::{RetryOn, RetryPolicy};
use fairlead_policy::filter::rewrite::{PathRewrite, RegexRewrite, Rewrite};
use fairlead_policy::matcher::{HeaderKey, StringMatch};
use fairlead_policy::route::{HttpAction, HttpMatch, HttpRoute};

use super::problem::Report;
use super::route::{Choice, Findings, RouteContext, labels, namespace, port_fits};
use super::virtual_service::applies_to_mesh;
use crate::source::REQUESTS_REFUSED;

/// Name of a route that has none (Istio `DefaultRouteName`).
const DEFAULT_NAME: &str = "default";

/// The routes of a VirtualService for one port; empty when none concerns it.
pub(super) fn compile(context: &RouteContext<'_>, findings: &mut Findings<'_>) -> Vec<HttpRoute> {
    let routes = context.entry.object.spec.http.iter().enumerate();
    routes.filter_map(|(i, route)| compile_route(route, i, context, findings)).collect()
}

fn compile_route(
    route: &api::HttpRoute,
    index: usize,
    context: &RouteContext<'_>,
    findings: &mut Findings<'_>,
) -> Option<HttpRoute> {
    let field = format!("spec.http[{index}]");
    let mut sound = true;
    let mut matches = Vec::with_capacity(route.matches.len());
    for (i, written) in route.matches.iter().enumerate() {
        if !applies_to_mesh(&written.gateways) || !port_fits(written.port, context.port) {
            continue;
        }
        let field = format!("{field}.match[{i}]");
        let (compiled, complete) = compile_match(written, &field, &mut findings.report);
        sound &= complete;
        matches.push(compiled);
    }
    if matches.is_empty() && !route.matches.is_empty() {
        return None;
    }
    let filters = filters(route, context, &field, &mut findings.report);
    let destinations = destinations(route, context, &field, findings);
    sound &= is_supported(route, &field, &mut findings.report);
    let name = if route.name.is_empty() { DEFAULT_NAME } else { &route.name };
    Some(match (sound, filters, destinations) {
        (true, Some(filters), Some(action)) => {
            HttpRoute { name: name.into(), matches: matches.into(), action, filters }
        }
        _ => HttpRoute {
            name: name.into(),
            matches: matches.into(),
            action: HttpAction::NoCluster,
            filters: HttpFilters::default(),
        },
    })
}

/// Whether the action of the route is supported; says so if not. (Mirroring and CORS are left out
/// without harm: that is the business of validation.)
fn is_supported(route: &api::HttpRoute, field: &str, report: &mut Report<'_>) -> bool {
    let mut supported = true;
    for (given, name) in [
        (route.redirect.is_some(), "redirect"),
        (route.direct_response.is_some(), "directResponse"),
        (route.delegate.is_some(), "delegate"),
    ] {
        if given {
            supported = false;
            report.error(format!("{field}.{name}"), REQUESTS_REFUSED);
        }
    }
    supported
}

fn destinations(
    route: &api::HttpRoute,
    context: &RouteContext<'_>,
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<HttpAction> {
    let mut choices = Vec::with_capacity(route.route.len());
    for (i, choice) in route.route.iter().enumerate() {
        let field = format!("{field}.route[{i}].headers");
        choices.push(Choice {
            destination: choice.destination.as_ref(),
            weight: choice.weight,
            headers: headers(choice.headers.as_ref(), &field, &mut findings.report)?,
        });
    }
    let weighted = context.weighted(choices, &format!("{field}.route"), findings);
    Some(weighted.map_or(HttpAction::NoCluster, HttpAction::Forward))
}

/// A match, and whether it says all that was written.
fn compile_match(
    written: &api::HttpMatch,
    field: &str,
    report: &mut Report<'_>,
) -> (HttpMatch, bool) {
    let mut complete = true;
    let mut text = |value: Option<&ApiMatch>, name: &str| {
        let compiled = string_match(value?, &format!("{field}.{name}"), report);
        complete &= compiled.is_some();
        compiled
    };
    let path = text(written.uri.as_ref(), "uri");
    let scheme = text(written.scheme.as_ref(), "scheme");
    let method = text(written.method.as_ref(), "method");
    let authority = text(written.authority.as_ref(), "authority");
    let query_params = written
        .query_params
        .iter()
        .filter_map(|(name, value)| {
            let compiled = text(Some(value), &format!("queryParams[{name}]"))?;
            Some((name.as_str().into(), compiled))
        })
        .collect();
    let mut header_matches = |all: &std::collections::BTreeMap<String, ApiMatch>, list: &str| {
        let compiled = all.iter().filter_map(|(name, value)| {
            let field = format!("{field}.{list}[{name}]");
            let key = match HeaderKey::parse(name) {
                Ok(key) => key,
                Err(error) => {
                    report.error(&field, format!("{error}; the route is answered 503"));
                    complete = false;
                    return None;
                }
            };
            let value = string_match(value, &field, report);
            complete &= value.is_some();
            Some((key, value?))
        });
        compiled.collect::<Box<[_]>>()
    };
    let headers = header_matches(&written.headers, "headers");
    let without_headers = header_matches(&written.without_headers, "withoutHeaders");
    let compiled = HttpMatch {
        path,
        ignore_path_case: written.ignore_uri_case,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        port: written.port.and_then(|port| u16::try_from(port).ok()),
        source_labels: labels(&written.source_labels),
        source_namespace: namespace(&written.source_namespace),
    };
    (compiled, complete)
}

fn string_match(written: &ApiMatch, field: &str, report: &mut Report<'_>) -> Option<StringMatch> {
    Some(match written {
        ApiMatch::Present => StringMatch::Present,
        ApiMatch::Exact(text) => StringMatch::Exact(text.as_str().into()),
        ApiMatch::Prefix(text) => StringMatch::Prefix(text.as_str().into()),
        ApiMatch::Regex(pattern) => match StringMatch::regex(pattern) {
            Ok(compiled) => compiled,
            Err(error) => {
                report
                    .error(format!("{field}.regex"), format!("{error}; the route is answered 503"));
                return None;
            }
        },
    })
}

/// The filters of a route; `None` when one of them cannot be expressed.
fn filters(
    route: &api::HttpRoute,
    context: &RouteContext<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<HttpFilters> {
    let rewrite = match &route.rewrite {
        Some(written) => Some(rewrite(written, &format!("{field}.rewrite"), report)?),
        None => None,
    };
    let default_retry = &context.mesh.default_retry;
    let retry = match &route.retries {
        Some(written) => retry(written, default_retry, &format!("{field}.retries"), report)?,
        None => default_retry.clone(),
    };
    Some(HttpFilters {
        fault: match &route.fault {
            Some(written) => fault(written, &format!("{field}.fault"), report),
            None => None,
        },
        rewrite,
        headers: headers(route.headers.as_ref(), &format!("{field}.headers"), report)?,
        // Envoy reads 0 as "no timeout", which is Istio's default too.
        timeout: route.timeout.map(ProtoDuration::get).filter(|timeout| !timeout.is_zero()),
        // Also when there are to be none: nothing would mean the default of the mesh.
        retry: Some(retry),
    })
}

fn rewrite(written: &api::HttpRewrite, field: &str, report: &mut Report<'_>) -> Option<Rewrite> {
    let path = match &written.uri_regex_rewrite {
        Some(regex) => match RegexRewrite::new(&regex.pattern, &regex.rewrite) {
            Ok(compiled) => Some(PathRewrite::Regex(compiled)),
            Err(error) => {
                report.error(
                    format!("{field}.uriRegexRewrite"),
                    format!("{error}; requests that match the route are answered 503"),
                );
                return None;
            }
        },
        None if written.uri.is_empty() => None,
        None => Some(PathRewrite::Uri(written.uri.as_str().into())),
    };
    let authority = (!written.authority.is_empty()).then(|| written.authority.as_str().into());
    Some(Rewrite { path, authority })
}

/// `retries`, of a route or of the mesh; what it does not say comes from `default`.
pub(super) fn retry(
    written: &api::HttpRetry,
    default: &RetryPolicy,
    field: &str,
    report: &mut Report<'_>,
) -> Option<RetryPolicy> {
    let retry_on = if written.retry_on.is_empty() {
        default.retry_on.clone()
    } else {
        match RetryOn::parse(&written.retry_on) {
            Ok(parsed) => parsed,
            Err(error) => {
                report.error(
                    format!("{field}.retryOn"),
                    format!("{error}; requests that match the route are answered 503"),
                );
                return None;
            }
        }
    };
    Some(RetryPolicy {
        attempts: u32::try_from(written.attempts).unwrap_or(0),
        per_try_timeout: written
            .per_try_timeout
            .map(ProtoDuration::get)
            .filter(|timeout| !timeout.is_zero()),
        retry_on,
        backoff: written
            .backoff
            .map(ProtoDuration::get)
            .filter(|backoff| *backoff > Duration::ZERO)
            .unwrap_or(default.backoff),
        ignore_previous_hosts: written
            .retry_ignore_previous_hosts
            .unwrap_or(default.ignore_previous_hosts),
        remote_localities: written.retry_remote_localities.unwrap_or(default.remote_localities),
    })
}

/// `fault`. What cannot be expressed injects nothing: a fault protects nobody.
fn fault(written: &api::Fault, field: &str, report: &mut Report<'_>) -> Option<Fault> {
    let delay = written.delay.as_ref().and_then(|delay| {
        let field = format!("{field}.delay");
        if delay.exponential_delay.is_some() {
            report.error(
                format!("{field}.exponentialDelay"),
                "not supported (Istio does not implement it either); nothing is delayed",
            );
        }
        let percentage = percentage(delay.percentage, delay.percent, &field, report)?;
        Some(Delay { fixed: delay.fixed_delay?.get(), percentage })
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let field = format!("{field}.abort");
        let with = abort_with(abort, &field, report)?;
        Some(Abort { with, percentage: percentage(abort.percentage, None, &field, report)? })
    });
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

fn abort_with(abort: &api::FaultAbort, field: &str, report: &mut Report<'_>) -> Option<AbortWith> {
    let ignored = "nothing is aborted";
    if let Some(status) = abort.http_status {
        let code = u16::try_from(status).ok().and_then(|s| http::StatusCode::from_u16(s).ok());
        if code.is_none() {
            report.error(
                format!("{field}.httpStatus"),
                format!("{status} is no status: 200 to 599; {ignored}"),
            );
        }
        return code.map(AbortWith::Http);
    }
    if let Some(status) = &abort.grpc_status {
        let code = GrpcStatus::parse(status);
        if code.is_none() {
            report.error(
                format!("{field}.grpcStatus"),
                format!("{status:?} is no gRPC status, such as UNAVAILABLE; {ignored}"),
            );
        }
        return code.map(AbortWith::Grpc);
    }
    if abort.http2_error.is_some() {
        report.error(
            format!("{field}.http2Error"),
            format!("not supported (Istio does not implement it either); {ignored}"),
        );
    }
    None
}

/// A percentage, or the whole number of old; nothing said means no request (Istio
/// `TranslateFault`).
fn percentage(
    written: Option<fairlead_api::Percent>,
    whole: Option<i32>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<Percentage> {
    let value = written.map_or_else(|| f64::from(whole.unwrap_or(0)), |percent| percent.value);
    let parsed = Percentage::from_percent(value);
    if parsed.is_none() {
        report.error(
            format!("{field}.percentage"),
            format!("{value} is not between 0 and 100; the fault is not injected"),
        );
    }
    parsed
}

/// `headers`; `None` when an operation cannot be expressed.
fn headers(
    written: Option<&api::Headers>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<HeaderOps> {
    let Some(written) = written else { return Some(HeaderOps::default()) };
    let mut edit = |operations: Option<&api::HeaderOperations>, direction, name: &str| {
        let Some(operations) = operations else { return Some(HeaderEdit::default()) };
        let compiled = HeaderEdit::new(
            direction,
            pairs(&operations.set),
            pairs(&operations.add),
            operations.remove.iter().map(String::as_str),
        );
        match compiled {
            Ok(edit) => Some(edit),
            Err(error) => {
                report.error(
                    format!("{field}.{name}"),
                    format!("{error}; requests that match the route are answered 503"),
                );
                None
            }
        }
    };
    Some(HeaderOps {
        request: edit(written.request.as_ref(), Direction::Request, "request")?,
        response: edit(written.response.as_ref(), Direction::Response, "response")?,
    })
}

fn pairs(map: &StringMap) -> impl Iterator<Item = (&str, &str)> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}
