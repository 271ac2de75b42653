//! What a VirtualService does to a request (Istio `validateHTTPFaultInjection`,
//! `validateHTTPRetry`, `validateHTTPRewrite` and their neighbours).

use fairlead_api::networking::{
    CorsPolicy, Fault, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpDirectResponse,
    HttpRedirect, HttpRetry, HttpRewrite, HttpRoute,
};

use fairlead_policy::filter::retry::RetryOn;

use super::checks;
use crate::source::path::Path;
use crate::source::problem::Effect;
use crate::source::sink::Sink;

/// Conditions of `retryOn` (Envoy `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Names of gRPC status codes.
const GRPC_STATUS: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
];

/// Everything but match and destinations.
pub(super) fn actions(route: &HttpRoute, at: &Path<'_>, sink: &mut Sink<'_>) {
    headers(route.headers.as_ref(), &at.field("headers"), sink);
    if let Some(value) = &route.redirect {
        redirect(value, &at.field("redirect"), sink);
    }
    if let Some(value) = &route.direct_response {
        direct_response(value, &at.field("directResponse"), sink);
    }
    if let Some(value) = &route.delegate
        && !checks::is_dns_name(&value.name)
    {
        let at = at.field("delegate");
        let message = format!("{:?} is not a VirtualService", value.name);
        sink.error(&at.field("name"), message, "the name of a VirtualService");
    }
    if let Some(value) = &route.rewrite {
        rewrite(value, &at.field("rewrite"), sink);
        authority_twice(value, route.headers.as_ref(), at, sink);
    }
    if let Some(value) = &route.retries {
        retries(value, &at.field("retries"), sink);
    }
    if let Some(value) = &route.fault {
        fault(value, &at.field("fault"), sink);
    }
    mirror(route, at, sink);
    if let Some(value) = &route.cors_policy {
        cors(value, &at.field("corsPolicy"), sink);
    }
}

/// Header changes of a route or destination.
pub(super) fn headers(value: Option<&Headers>, at: &Path<'_>, sink: &mut Sink<'_>) {
    let Some(Headers { request, response }) = value else { return };
    for (field, operations) in [("request", request), ("response", response)] {
        if let Some(operations) = operations {
            header_operations(operations, field == "request", &at.field(field), sink);
        }
    }
}

fn header_operations(
    HeaderOperations { set, add, remove }: &HeaderOperations,
    request: bool,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    for (field, map) in [("set", set), ("add", add)] {
        let at = at.field(field);
        for (name, value) in map {
            let at = at.key(name);
            if !(request && is_authority(name)) {
                changeable(name, &at, sink);
            }
            if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
                sink.error(&at, "the value holds a line break or NUL", "one line of text");
            }
        }
    }
    let at = at.field("remove");
    for (index, name) in remove.iter().enumerate() {
        changeable(name, &at.index(index), sink);
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn changeable(name: &str, at: &Path<'_>, sink: &mut Sink<'_>) {
    if name.starts_with(':') || is_authority(name) {
        let allowed = "host and :authority in request.set and request.add alone";
        sink.error(at, format!("{name:?} cannot be changed here"), allowed);
    } else {
        checks::header_name(sink, at, name);
    }
}

fn redirect(value: &HttpRedirect, at: &Path<'_>, sink: &mut Sink<'_>) {
    let HttpRedirect { uri, authority, port, derive_port, scheme, redirect_code, prefix_rewrite } =
        value;
    let nothing = uri.is_empty() && authority.is_empty() && scheme.is_empty();
    if nothing && prefix_rewrite.is_empty() && port.is_none() && derive_port.is_none() {
        sink.error(at, "redirects to nowhere else", "at least one of uri, authority, port, scheme");
    }
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        sink.error(&at.field("prefixRewrite"), "stands beside uri", "one of uri and prefixRewrite");
    }
    if port.is_some() && derive_port.is_some() {
        sink.error(&at.field("derivePort"), "stands beside port", "one of port and derivePort");
    }
    if let Some(port) = port {
        checks::port(sink, &at.field("port"), *port);
    }
    if !matches!(redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        let message = format!("{redirect_code} is not a redirect");
        sink.error(&at.field("redirectCode"), message, "301, 302, 303, 307 or 308");
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        sink.error(&at.field("scheme"), format!("{scheme:?} is not known"), "http or https");
    }
}

fn direct_response(value: &HttpDirectResponse, at: &Path<'_>, sink: &mut Sink<'_>) {
    /// Istio's bound of a body.
    const MAX_BODY: usize = 1 << 20;
    if !(100..600).contains(&value.status) {
        let message = format!("{} is not an HTTP status", value.status);
        sink.error(&at.field("status"), message, "100 to 599");
    }
    let Some(body) = &value.body else { return };
    let body_at = at.field("body");
    match (&body.string, &body.bytes) {
        (None, None) | (Some(_), Some(_)) => {
            sink.error(&body_at, "is not clear", "one of string and bytes");
        }
        (Some(text), None) | (None, Some(text)) if text.len() > MAX_BODY => {
            sink.error(&body_at, "the body is too large", "at most 1 MiB");
        }
        _ => {}
    }
}

fn rewrite(value: &HttpRewrite, at: &Path<'_>, sink: &mut Sink<'_>) {
    let HttpRewrite { uri, authority, uri_regex_rewrite } = value;
    match uri_regex_rewrite {
        None if uri.is_empty() && authority.is_empty() => {
            sink.error(at, "rewrites nothing", "at least one of uri, authority, uriRegexRewrite");
        }
        None => {}
        Some(by_regex) => {
            let at = at.field("uriRegexRewrite");
            if !uri.is_empty() {
                sink.error(&at, "stands beside uri", "one of uri and uriRegexRewrite");
            }
            checks::regex(sink, &at.field("match"), &by_regex.pattern);
        }
    }
}

fn authority_twice(
    rewrite: &HttpRewrite,
    headers: Option<&Headers>,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    if rewrite.authority.is_empty() {
        return;
    }
    let Some(request) = headers.and_then(|headers| headers.request.as_ref()) else { return };
    if request.set.keys().chain(request.add.keys()).any(|name| is_authority(name)) {
        let at = at.field("rewrite");
        let message = "the headers set the authority too";
        sink.error(&at.field("authority"), message, "one place that sets it");
    }
}

pub(super) fn retries(value: &HttpRetry, at: &Path<'_>, sink: &mut Sink<'_>) {
    let HttpRetry { attempts, per_try_timeout, retry_on, backoff, .. } = value;
    checks::not_negative(sink, &at.field("attempts"), *attempts);
    if *attempts == 0 && (per_try_timeout.is_some() || !retry_on.is_empty()) {
        let message = "0 attempts turn retries off; the rest has no effect";
        sink.error(&at.field("attempts"), message, "1 or more, or no perTryTimeout and retryOn");
    }
    checks::duration(sink, &at.field("perTryTimeout"), *per_try_timeout);
    checks::duration(sink, &at.field("backoff"), *backoff);
    for condition in retry_on.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        let status = condition.parse::<u16>().is_ok_and(|code| (100..600).contains(&code));
        if !status && !RETRY_ON.contains(&condition) {
            let message = format!("{condition:?} is not a condition");
            let allowed = format!("status codes and {}", RETRY_ON.join(", "));
            sink.error(&at.field("retryOn"), message, &allowed);
        } else if RetryOn::NEVER.contains(&condition) {
            let message = format!("{condition} never applies yet");
            sink.warn_of(Effect::Partly, &at.field("retryOn"), message, "");
        }
    }
}

fn fault(Fault { delay, abort }: &Fault, at: &Path<'_>, sink: &mut Sink<'_>) {
    if delay.is_none() && abort.is_none() {
        sink.error(at, "injects nothing", "at least one of delay and abort");
    }
    if let Some(value) = delay {
        fault_delay(value, &at.field("delay"), sink);
    }
    if let Some(value) = abort {
        fault_abort(value, &at.field("abort"), sink);
    }
}

fn fault_delay(value: &FaultDelay, at: &Path<'_>, sink: &mut Sink<'_>) {
    let FaultDelay { percent, fixed_delay, exponential_delay, percentage } = value;
    match (fixed_delay, exponential_delay) {
        (Some(_), Some(_)) => {
            let message = "stands beside fixedDelay";
            sink.error(&at.field("exponentialDelay"), message, "one of the two");
        }
        (None, None) => sink.error(&at.field("fixedDelay"), "is missing", "a duration"),
        _ => {}
    }
    checks::duration(sink, &at.field("fixedDelay"), *fixed_delay);
    checks::duration(sink, &at.field("exponentialDelay"), *exponential_delay);
    checks::percent(sink, &at.field("percentage"), *percentage);
    if let Some(percent) = percent {
        if !(0..=100).contains(percent) {
            let message = format!("{percent} is not a percentage");
            sink.error(&at.field("percent"), message, "0 to 100");
        }
        sink.warn(&at.field("percent"), "is deprecated", "percentage: {value: …}");
    }
}

fn fault_abort(value: &FaultAbort, at: &Path<'_>, sink: &mut Sink<'_>) {
    const ONE: &str = "one of httpStatus, grpcStatus, http2Error";
    let FaultAbort { http_status, grpc_status, http2_error, percentage } = value;
    let set = [http_status.is_some(), grpc_status.is_some(), http2_error.is_some()];
    match set.iter().filter(|set| **set).count() {
        0 => sink.error(at, "does not say with what", ONE),
        1 => {}
        _ => sink.error(at, "says it twice", ONE),
    }
    if let Some(status) = http_status
        && !(200..600).contains(status)
    {
        let message = format!("{status} is not a status to answer with");
        sink.error(&at.field("httpStatus"), message, "200 to 599");
    }
    if let Some(status) = grpc_status
        && !GRPC_STATUS.contains(&status.as_str())
    {
        let message = format!("{status:?} is not a gRPC status");
        sink.error(&at.field("grpcStatus"), message, &format!("one of {}", GRPC_STATUS.join(", ")));
    }
    checks::percent(sink, &at.field("percentage"), *percentage);
}

fn mirror(route: &HttpRoute, at: &Path<'_>, sink: &mut Sink<'_>) {
    if let Some(value) = &route.mirror {
        checks::destination(sink, &at.field("mirror"), value);
        if !route.mirrors.is_empty() {
            sink.error(&at.field("mirrors"), "stands beside mirror", "one of mirror and mirrors");
        }
    }
    if let Some(percent) = route.mirror_percent {
        if percent > 100 {
            let message = format!("{percent} is not a percentage");
            sink.error(&at.field("mirrorPercent"), message, "0 to 100");
        }
        sink.warn(&at.field("mirrorPercent"), "is deprecated", "mirrorPercentage");
    }
    checks::percent(sink, &at.field("mirrorPercentage"), route.mirror_percentage);
    let at = at.field("mirrors");
    for (index, one) in route.mirrors.iter().enumerate() {
        let at = at.index(index);
        match &one.destination {
            Some(to) => checks::destination(sink, &at.field("destination"), to),
            None => sink.error(&at.field("destination"), "is missing", "every mirror needs one"),
        }
        checks::percent(sink, &at.field("percentage"), one.percentage);
    }
}

fn cors(value: &CorsPolicy, at: &Path<'_>, sink: &mut Sink<'_>) {
    let origins = at.field("allowOrigins");
    for (index, origin) in value.allow_origins.iter().enumerate() {
        checks::string_match(sink, &origins.index(index), origin, false);
    }
    let methods = at.field("allowMethods");
    for (index, method) in value.allow_methods.iter().enumerate() {
        if !checks::is_token(method) {
            let message = format!("{method:?} is not a method");
            sink.error(&methods.index(index), message, "HTTP methods, or *");
        }
    }
    for (field, names) in
        [("allowHeaders", &value.allow_headers), ("exposeHeaders", &value.expose_headers)]
    {
        let at = at.field(field);
        for (index, name) in names.iter().enumerate() {
            checks::header_name(sink, &at.index(index), name);
        }
    }
    if value.max_age.is_some_and(|age| age.get().subsec_nanos() != 0) {
        sink.error(&at.field("maxAge"), "has parts of a second", "whole seconds");
    }
}
