//! Checks that several kinds share.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use fairlead_api::networking::{Destination, PortSelector};
use fairlead_api::{Percent, ProtoDuration, StringMap, StringMatch};
use fairlead_policy::matcher;
use ipnet::IpNet;

use crate::source::path::Path;
use crate::source::sink::Sink;

/// What a DNS label is.
pub(super) const LABEL_RULE: &str = "lower-case letters, digits and '-', beginning and ending \
                                     with a letter or digit, at most 63";
/// Longest regular expression (Istio: 1024).
const MAX_REGEX: usize = 1024;

/// RFC 1123 label.
pub(super) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123 subdomain, as Kubernetes names objects.
pub(super) fn is_dns_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// A host name as Istio takes it: labels may be upper case and have '_' within.
pub(super) fn is_fqdn(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        label.len() <= 63
            && end(label.bytes().next())
            && end(label.bytes().last())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    !text.is_empty() && text.len() <= 255 && text.split('.').all(label)
}

/// A host name, or `*`, or `*.` before one.
pub(super) fn is_wildcard_host(text: &str) -> bool {
    text == "*" || is_fqdn(text.strip_prefix("*.").unwrap_or(text))
}

/// A host name or `*.` wildcard; an IP address if `ip`.
pub(super) fn host(sink: &mut Sink<'_>, at: &Path<'_>, text: &str, ip: bool) {
    if !(is_wildcard_host(text) || ip && text.parse::<IpAddr>().is_ok()) {
        let message =
            if text.is_empty() { "is empty".to_owned() } else { format!("{text:?} is not a host") };
        let allowed = "a service name, a domain name, or one with a leading '*.'";
        sink.error(at, message, allowed);
    }
}

/// A port number.
pub(super) fn port(sink: &mut Sink<'_>, at: &Path<'_>, number: u32) {
    if !(1..=65535).contains(&number) {
        sink.error(at, format!("{number} is not a port"), "1 to 65535");
    }
}

/// A port of a service, by number.
pub(super) fn port_selector(sink: &mut Sink<'_>, at: &Path<'_>, selector: Option<PortSelector>) {
    if let Some(selector) = selector {
        port(sink, &at.field("number"), selector.number);
    }
}

/// A duration that must not round to nothing.
pub(super) fn duration(sink: &mut Sink<'_>, at: &Path<'_>, value: Option<ProtoDuration>) {
    if value.is_some_and(|value| value.get() < Duration::from_millis(1)) {
        sink.error(at, "the duration is too short", "at least 1ms");
    }
}

/// A share in percent.
pub(super) fn percent(sink: &mut Sink<'_>, at: &Path<'_>, value: Option<Percent>) {
    if let Some(Percent { value }) = value
        && !(0.0..=100.0).contains(&value)
    {
        sink.error(&at.field("value"), format!("{value} is not a percentage"), "0 to 100");
    }
}

/// A count or whole percentage that must not be negative.
pub(super) fn not_negative(sink: &mut Sink<'_>, at: &Path<'_>, value: i32) {
    if value < 0 {
        sink.error(at, format!("{value} is negative"), "0 or more");
    }
}

/// A regular expression in the syntax of RE2 (which the `regex` crate shares).
pub(super) fn regex(sink: &mut Sink<'_>, at: &Path<'_>, pattern: &str) {
    if pattern.is_empty() {
        return sink.error(at, "the expression is empty", "an RE2 regular expression");
    }
    if pattern.len() > MAX_REGEX {
        let message = format!("the expression has {} bytes", pattern.len());
        return sink.error(at, message, &format!("at most {MAX_REGEX}"));
    }
    if let Err(error) = matcher::StringMatch::regex(pattern) {
        // The engine draws a picture over several lines; its last line says what is wrong.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let message = format!("{pattern:?} is not a usable regular expression: {last}");
        sink.error(at, message, "an RE2 regular expression");
    }
}

/// A string match with content; `{}` only where it means "is present".
pub(super) fn string_match(sink: &mut Sink<'_>, at: &Path<'_>, value: &StringMatch, present: bool) {
    match value {
        StringMatch::Present if present => {}
        StringMatch::Present => {
            sink.error(at, "the match is empty", "one of exact, prefix, regex");
        }
        StringMatch::Prefix(text) if text.is_empty() => {
            sink.error(&at.field("prefix"), "the prefix is empty", "at least one character");
        }
        StringMatch::Exact(_) | StringMatch::Prefix(_) => {}
        StringMatch::Regex(pattern) => regex(sink, &at.field("regex"), pattern),
    }
}

/// Labels of workloads.
pub(super) fn labels(sink: &mut Sink<'_>, at: &Path<'_>, labels: &StringMap) {
    for (key, value) in labels {
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
        if !(prefix.is_empty() && !key.contains('/') || is_dns_name(prefix)) || !is_label(name, 1) {
            let message = format!("{key:?} is not a label key");
            sink.error(&at.key(key), message, "letters, digits, '-', '_', '.', at most 63, with a domain and '/' before it if wanted");
        }
        if !is_label(value, 0) {
            let message = format!("{value:?} is not a label value");
            sink.error(&at.key(key), message, "letters, digits, '-', '_', '.', at most 63");
        }
    }
}

fn is_label(text: &str, min: usize) -> bool {
    let end = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    (min..=63).contains(&text.len())
        && end(text.bytes().next())
        && end(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// An address or CIDR.
pub(super) fn subnet(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    if text.parse::<IpAddr>().is_err() && text.parse::<IpNet>().is_err() {
        let message = format!("{text:?} is not an address or range");
        sink.error(at, message, "an IP address or CIDR such as 10.0.0.0/8");
    }
}

/// Addresses or CIDRs.
pub(super) fn subnets(sink: &mut Sink<'_>, at: &Path<'_>, texts: &[String]) {
    for (index, text) in texts.iter().enumerate() {
        subnet(sink, &at.index(index), text);
    }
}

/// An IP address.
pub(super) fn ip(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    if text.parse::<IpAddr>().is_err() {
        sink.error(at, format!("{text:?} is not an IP address"), "an IPv4 or IPv6 address");
    }
}

/// `gateways`: `mesh`, a name, or `namespace/name`.
pub(super) fn gateways(sink: &mut Sink<'_>, at: &Path<'_>, names: &[String]) {
    for (index, text) in names.iter().enumerate() {
        let valid = match text.split_once('/') {
            Some((namespace, name)) => is_dns_label(namespace) && is_dns_name(name),
            None => is_fqdn(text),
        };
        if !valid {
            let message = format!("{text:?} is not a gateway");
            sink.error(&at.index(index), message, "mesh, a name, or <namespace>/<name>");
        }
    }
}

/// `exportTo`: `.`, `*` or namespaces, without repetition.
pub(super) fn export_to(sink: &mut Sink<'_>, at: &Path<'_>, names: &[String], namespace: &str) {
    let mut seen = BTreeSet::new();
    for (index, text) in names.iter().enumerate() {
        let at = at.index(index);
        let meant = if text == "." { namespace } else { text.as_str() };
        if text != "*" && !is_dns_label(meant) {
            sink.error(&at, format!("{text:?} is not a namespace"), "'.', '*' or namespaces");
        } else if !seen.insert(meant) {
            sink.error(&at, format!("{text:?} is there twice"), "each namespace once");
        } else if text == "*" && names.len() > 1 {
            sink.error(&at, "'*' stands beside others", "'*' alone, or namespaces");
        }
    }
}

/// A destination of a route.
pub(super) fn destination(sink: &mut Sink<'_>, at: &Path<'_>, value: &Destination) {
    let host_at = at.field("host");
    if value.host == "*" || value.host.starts_with("*.") {
        sink.error(&host_at, "a wildcard is no destination", "the name of one service");
    } else {
        host(sink, &host_at, &value.host, true);
    }
    if !value.subset.is_empty() && !is_dns_label(&value.subset) {
        let message = format!("{:?} is not a subset name", value.subset);
        sink.error(&at.field("subset"), message, LABEL_RULE);
    }
    port_selector(sink, &at.field("port"), value.port);
}

/// Destinations with weights: those of several sum up to more than nothing.
pub(super) fn weighted<'a>(
    sink: &mut Sink<'_>,
    at: &Path<'_>,
    routes: impl ExactSizeIterator<Item = (Option<&'a Destination>, i32)>,
) {
    let several = routes.len() > 1;
    let mut total: i64 = 0;
    for (index, (to, weight)) in routes.enumerate() {
        let at = at.index(index);
        match to {
            Some(to) => destination(sink, &at.field("destination"), to),
            None => sink.error(&at.field("destination"), "is missing", "every route needs one"),
        }
        not_negative(sink, &at.field("weight"), weight);
        total += i64::from(weight.max(0));
    }
    if several && total == 0 {
        sink.error(at, "the weights sum up to 0", "of several routes, at least one weight above 0");
    }
    // More than this does not fit the counter of a balancer.
    if total > i64::from(u32::MAX) {
        sink.error(at, format!("the weights sum up to {total}"), "at most 4294967295");
    }
}

/// A header name (RFC 9110 token).
pub(super) fn header_name(sink: &mut Sink<'_>, at: &Path<'_>, name: &str) {
    if !is_token(name) {
        sink.error(at, format!("{name:?} is not a header name"), "an HTTP token");
    }
}

/// RFC 9110 token.
pub(super) fn is_token(text: &str) -> bool {
    let tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(tchar)
}
