//! AuthorizationPolicy (Istio `ValidateAuthorizationPolicy` and its `security` package).
//!
//! Stricter than Istio in one respect: what could only be a slip that makes a policy allow more
//! than it says (a principal with its scheme, a field that is written but empty) is refused.

use fairlead_api::security::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationPolicySpec, Condition, Operation, Rule,
    Source,
};

use fairlead_policy::authz::PathMatch;

use super::{checks, selector};
use crate::source::path::{Path, Step};
use crate::source::problem::Effect;
use crate::source::sink::Sink;
use crate::source::tree::{Node, Value};
use crate::source::unenforced::{ENFORCED_CONDITIONS, LEAVE_IT_OUT, NOT_ENFORCEABLE, NOT_ENFORCED};

/// Keys of `when` that stand alone.
const PLAIN_KEYS: &[&str] = &[
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];
/// Keys of `when` with a name in brackets after them.
const NAMED_KEYS: &[&str] = &["request.headers", "request.auth.claims"];

pub(in super::super) fn authorization_policy(object: &AuthorizationPolicy, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let (single, several) = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    selector::attachment(spec.selector.as_ref(), single, several, &at, sink);
    action(spec, &at, sink);
    let rules = at.field("rules");
    for (index, one) in spec.rules.iter().enumerate() {
        rule(one, spec.action, &rules.index(index), sink);
    }
}

fn action(spec: &AuthorizationPolicySpec, at: &Path<'_>, sink: &mut Sink<'_>) {
    let action = at.field("action");
    match spec.action {
        AuthorizationAction::Allow => {}
        AuthorizationAction::Deny if spec.rules.is_empty() => {
            let message = "DENY without rules never denies";
            sink.error(&at.field("rules"), message, "at least one rule; {} denies everything");
        }
        AuthorizationAction::Deny => {}
        AuthorizationAction::Audit => {
            let message = format!("AUDIT is {NOT_ENFORCED}");
            sink.warn_of(Effect::NotEnforced, &action, message, "");
        }
        AuthorizationAction::Custom => {
            let message = format!("CUSTOM {NOT_ENFORCEABLE}");
            sink.unbuilt(&action, message, "ALLOW or DENY");
        }
    }
    if spec.provider.is_some() && spec.action != AuthorizationAction::Custom {
        sink.error(&at.field("provider"), "belongs to CUSTOM", "nothing");
    }
}

fn rule(rule: &Rule, action: AuthorizationAction, at: &Path<'_>, sink: &mut Sink<'_>) {
    for field in ["from", "to", "when"] {
        let at = at.field(field);
        if written_empty(sink.node(), &at) {
            let message = "is empty, which would match anything";
            sink.error(&at, message, "at least one entry, or leave the field out");
        }
    }
    let from = at.field("from");
    for (index, one) in rule.from.iter().enumerate() {
        let at = from.index(index);
        match &one.source {
            Some(value) => source(value, &at.field("source"), sink),
            None => sink.error(&at.field("source"), "is missing", "every entry needs one"),
        }
    }
    let to = at.field("to");
    for (index, one) in rule.to.iter().enumerate() {
        let at = to.index(index);
        match &one.operation {
            Some(value) => operation(value, &at.field("operation"), sink),
            None => sink.error(&at.field("operation"), "is missing", "every entry needs one"),
        }
    }
    let when = at.field("when");
    for (index, one) in rule.when.iter().enumerate() {
        condition(one, &when.index(index), sink);
    }
    if action == AuthorizationAction::Deny
        && !rule.to.is_empty()
        && rule.to.iter().filter_map(|to| to.operation.as_ref()).all(no_ports)
    {
        let message = "on ports that do not carry HTTP, this denies everything";
        sink.warn(&to, message, "ports, beside what is of HTTP");
    }
}

fn no_ports(operation: &Operation) -> bool {
    operation.ports.is_empty() && operation.not_ports.is_empty()
}

/// Whether the field is written, as a list without entries.
fn written_empty(node: &Node<'_>, at: &Path<'_>) -> bool {
    let mut here = node;
    for step in at.steps() {
        let next = match step {
            Step::Name(name) => here.get(name),
            Step::Index(index) => here.items().get(index),
        };
        let Some(next) = next else { return false };
        here = next;
    }
    matches!(&here.value, Value::Sequence(items) if items.is_empty())
}

/// One list of values: none may be empty, and the list itself not either, if it is written.
fn values(
    field: &str,
    list: &[String],
    at: &Path<'_>,
    sink: &mut Sink<'_>,
    mut check: impl FnMut(&mut Sink<'_>, &Path<'_>, &str),
) {
    let at = at.field(field);
    if list.is_empty() && written_empty(sink.node(), &at) {
        sink.error(&at, "is empty", "at least one value, or leave the field out");
    }
    for (index, text) in list.iter().enumerate() {
        let at = at.index(index);
        if text.is_empty() {
            sink.error(&at, "the value is empty", "a value; '*' for any that is there");
        } else {
            check(sink, &at, text);
        }
    }
}

fn source(value: &Source, at: &Path<'_>, sink: &mut Sink<'_>) {
    let Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = value;
    if *value == Source::default() {
        sink.error(at, "the source is empty, which would match anyone", "at least one field");
    }
    values("principals", principals, at, sink, principal);
    values("notPrincipals", not_principals, at, sink, principal);
    values("requestPrincipals", request_principals, at, sink, any);
    values("notRequestPrincipals", not_request_principals, at, sink, any);
    values("namespaces", namespaces, at, sink, any);
    values("notNamespaces", not_namespaces, at, sink, any);
    values("serviceAccounts", service_accounts, at, sink, service_account);
    values("notServiceAccounts", not_service_accounts, at, sink, service_account);
    values("trustDomains", trust_domains, at, sink, any);
    values("notTrustDomains", not_trust_domains, at, sink, any);
    values("ipBlocks", ip_blocks, at, sink, checks::subnet);
    values("notIpBlocks", not_ip_blocks, at, sink, checks::subnet);
    values("remoteIpBlocks", remote_ip_blocks, at, sink, checks::subnet);
    values("notRemoteIpBlocks", not_remote_ip_blocks, at, sink, checks::subnet);
    let accounts = !(service_accounts.is_empty() && not_service_accounts.is_empty());
    let others = [principals, not_principals, namespaces, not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        let message = "cannot stand beside principals or namespaces";
        sink.error(&at.field("serviceAccounts"), message, "one way to name the peer");
    }
}

fn operation(value: &Operation, at: &Path<'_>, sink: &mut Sink<'_>) {
    let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } =
        value;
    if *value == Operation::default() {
        sink.error(at, "the operation is empty, which would match any", "at least one field");
    }
    values("hosts", hosts, at, sink, any);
    values("notHosts", not_hosts, at, sink, any);
    values("ports", ports, at, sink, port);
    values("notPorts", not_ports, at, sink, port);
    values("methods", methods, at, sink, any);
    values("notMethods", not_methods, at, sink, any);
    values("paths", paths, at, sink, path);
    values("notPaths", not_paths, at, sink, path);
}

fn any(_: &mut Sink<'_>, _: &Path<'_>, _: &str) {}

fn principal(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    if text.starts_with("spiffe://") {
        let message = "a principal is written without spiffe://; this would never match";
        sink.error(at, message, "<trust domain>/ns/<namespace>/sa/<service account>");
    }
}

fn service_account(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    let valid = match text.split_once('/') {
        Some((namespace, name)) => checks::is_dns_label(namespace) && checks::is_dns_name(name),
        None => checks::is_dns_name(text),
    };
    if !valid {
        let message = format!("{text:?} is not a service account");
        sink.error(at, message, "<namespace>/<name>, or <name> of the policy's namespace");
    }
}

fn port(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    if !text.parse::<u16>().is_ok_and(|port| port > 0) || !text.bytes().all(|b| b.is_ascii_digit())
    {
        sink.error(at, format!("{text:?} is not a port"), "\"1\" to \"65535\"");
    }
}

/// A path, with `*` at one end or with templates (Istio `CheckValidPathTemplate`).
fn path(sink: &mut Sink<'_>, at: &Path<'_>, text: &str) {
    const TEMPLATE: &str = "{*} and {**} as whole segments, {**} as the last of them";
    let template = text.contains("{*}") || text.contains("{**}");
    let literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
    let mut rest = false;
    for segment in text.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest => {
                return sink.error(at, format!("{text:?}: {{**}} is not the last"), TEMPLATE);
            }
            "{*}" => {}
            "{**}" => rest = true,
            _ if segment.contains(['{', '}'])
                || template && (segment.is_empty() || !segment.bytes().all(literal)) =>
            {
                return sink.error(at, format!("{text:?} is not a path template"), TEMPLATE);
            }
            _ => {}
        }
    }
    // The evaluator's own opinion, should it differ.
    if let Err(error) = PathMatch::parse(text) {
        sink.error(at, error.to_string(), TEMPLATE);
    }
    if !text.starts_with(['/', '*']) {
        let message = format!("{text:?} matches no path: all of them begin with '/'");
        sink.error(at, message, "a path with '/' at its beginning, or '*'");
    }
}

fn condition(value: &Condition, at: &Path<'_>, sink: &mut Sink<'_>) {
    let Condition { key, values: positive, not_values: negative } = value;
    let key_at = at.field("key");
    let known = PLAIN_KEYS.contains(&key.as_str())
        || key.strip_suffix(']').is_some_and(|text| {
            text.split_once('[').is_some_and(|(group, name)| {
                !name.is_empty() && NAMED_KEYS.contains(&group)
                    || group.starts_with("experimental.envoy.filters.")
            })
        })
        || key.starts_with("experimental.envoy.filters.");
    let enforced = ENFORCED_CONDITIONS.iter().any(|enforced| {
        if enforced.ends_with('[') { key.starts_with(enforced) } else { key == enforced }
    });
    if !known {
        let message =
            if key.is_empty() { "is missing".to_owned() } else { format!("{key:?} is not known") };
        let allowed = format!("one of {}, {}[…]", PLAIN_KEYS.join(", "), NAMED_KEYS.join("[…], "));
        sink.error(&key_at, message, &allowed);
    } else if !enforced {
        sink.unbuilt(&key_at, format!("{key} {NOT_ENFORCEABLE}"), LEAVE_IT_OUT);
    }
    if positive.is_empty() && negative.is_empty() {
        sink.error(at, "has neither values nor notValues", "at least one of the two");
    }
    for (field, list) in [("values", positive), ("notValues", negative)] {
        values(field, list, at, sink, |sink, at, text| match key.as_str() {
            "source.ip" | "remote.ip" | "destination.ip" => checks::subnet(sink, at, text),
            "destination.port" => port(sink, at, text),
            "source.principal" => principal(sink, at, text),
            "source.serviceAccount" => service_account(sink, at, text),
            _ => {}
        });
    }
}
