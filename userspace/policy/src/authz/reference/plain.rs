//! The reference itself: policies as written, and what they mean.

use std::net::{IpAddr, SocketAddr};

use fairlead_types::SpiffeId;

use crate::authz::Action;

/// `values` and `notValues` as written.
pub(super) type Lists = (Vec<String>, Vec<String>);

#[derive(Debug, Default, Clone)]
pub(super) struct PlainSource {
    pub(super) principals: Lists,
    pub(super) namespaces: Lists,
    pub(super) service_accounts: Lists,
    pub(super) trust_domains: Lists,
    pub(super) ip_blocks: Lists,
}

#[derive(Debug, Default, Clone)]
pub(super) struct PlainOperation {
    pub(super) hosts: Lists,
    pub(super) ports: Lists,
    pub(super) methods: Lists,
    pub(super) paths: Lists,
}

#[derive(Debug, Default, Clone)]
pub(super) struct PlainRule {
    pub(super) from: Vec<PlainSource>,
    pub(super) to: Vec<PlainOperation>,
    pub(super) when: Vec<(String, Lists)>,
}

#[derive(Debug, Clone)]
pub(super) struct PlainPolicy {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) rules: Vec<PlainRule>,
}

pub(super) struct World {
    pub(super) trust_domains: Vec<&'static str>,
    pub(super) peer: Option<SpiffeId>,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) sni: Option<&'static str>,
    pub(super) method: &'static str,
    pub(super) authority: &'static str,
    pub(super) path: &'static str,
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

fn plain_wildcard(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return !text.is_empty();
    }
    let chars: Vec<char> = pattern.chars().collect();
    if chars[0] == '*' {
        let tail: String = chars[1..].iter().collect();
        return text.len() >= tail.len() && text[text.len() - tail.len()..] == tail;
    }
    if chars[chars.len() - 1] == '*' {
        let head: String = chars[..chars.len() - 1].iter().collect();
        return text.len() >= head.len() && text[..head.len()] == head;
    }
    pattern == text
}

/// Matches `*` anywhere, by trying every split.
fn plain_glob(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => (0..=text.len()).any(|i| plain_glob(&pattern[1..], &text[i..])),
        Some(c) => text.starts_with(c) && plain_glob(&pattern[1..], &text[1..]),
    }
}

fn plain_template(pattern: &str, path: &str) -> bool {
    fn segments(pattern: &[&str], path: &[&str]) -> bool {
        match pattern {
            [] => path.is_empty(),
            ["{**}"] => !path.is_empty(),
            ["{*}", rest @ ..] => {
                !path.is_empty() && !path[0].is_empty() && segments(rest, &path[1..])
            }
            [literal, rest @ ..] => {
                !path.is_empty() && path[0] == *literal && segments(rest, &path[1..])
            }
        }
    }
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    segments(&pattern, &path)
}

fn plain_cidr(block: &str, ip: IpAddr) -> bool {
    let (net, bits) = match block.split_once('/') {
        Some((net, bits)) => (net, bits.parse::<u32>().unwrap()),
        None => (block, if block.contains(':') { 128 } else { 32 }),
    };
    match (net.parse::<IpAddr>().unwrap(), ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            (0..bits).all(|i| u32::from(net) >> (31 - i) & 1 == u32::from(ip) >> (31 - i) & 1)
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            (0..bits).all(|i| u128::from(net) >> (127 - i) & 1 == u128::from(ip) >> (127 - i) & 1)
        }
        _ => false,
    }
}

fn plain_principal(pattern: &str, world: &World) -> bool {
    let Some(peer) = &world.peer else { return false };
    let have = peer.to_string().replace("spiffe://", "");
    let parts: Vec<&str> = pattern.split('/').collect();
    let mut spellings = vec![pattern.to_owned()];
    if parts.len() == 5 && parts[0] != "*" {
        let known = world.trust_domains.contains(&parts[0]) || parts[0] == "cluster.local";
        if known {
            spellings.clear();
            for td in &world.trust_domains {
                spellings.push(format!("{td}/{}", parts[1..].join("/")));
            }
        }
    }
    spellings.iter().any(|spelling| plain_wildcard(spelling, &have))
}

fn plain_trust_domain(pattern: &str, world: &World) -> bool {
    let Some(peer) = &world.peer else { return false };
    let have = peer.to_string().split('/').nth(2).unwrap().to_owned();
    if world.trust_domains.contains(&pattern) {
        return world.trust_domains.contains(&have.as_str());
    }
    plain_wildcard(pattern, &have)
}

fn plain_account(pattern: &str, policy: &PlainPolicy, world: &World) -> bool {
    let Some(peer) = &world.peer else { return false };
    let have = format!("{}/{}", peer.namespace(), peer.service_account());
    have == pattern || have == format!("{}/{pattern}", policy.namespace)
}

fn holds(lists: &Lists, test: &dyn Fn(&str) -> bool) -> bool {
    let mut one = lists.0.is_empty();
    for value in &lists.0 {
        if test(value) {
            one = true;
        }
    }
    for value in &lists.1 {
        if test(value) {
            return false;
        }
    }
    one
}

fn given(lists: &Lists) -> bool {
    !lists.0.is_empty() || !lists.1.is_empty()
}

fn plain_rule(policy: &PlainPolicy, rule: &PlainRule, world: &World, http: bool) -> bool {
    let looks_at_request =
        rule.to.iter().any(|op| given(&op.hosts) || given(&op.methods) || given(&op.paths))
            || rule.when.iter().any(|(k, v)| k.starts_with("request.headers") && given(v));
    if !http && looks_at_request && policy.action == Action::Allow {
        return false;
    }
    let namespace = |pattern: &str| {
        world.peer.as_ref().is_some_and(|peer| plain_glob(pattern, peer.namespace()))
    };
    let from = rule.from.is_empty()
        || rule.from.iter().any(|source| {
            holds(&source.principals, &|v| plain_principal(v, world))
                && holds(&source.namespaces, &namespace)
                && holds(&source.service_accounts, &|v| plain_account(v, policy, world))
                && holds(&source.trust_domains, &|v| plain_trust_domain(v, world))
                && holds(&source.ip_blocks, &|v| plain_cidr(v, world.source.ip()))
        });
    let port = |v: &str| v == world.destination.port().to_string();
    let to = rule.to.is_empty()
        || rule.to.iter().any(|op| {
            holds(&op.ports, &port)
                && (!http
                    || holds(&op.hosts, &|v| {
                        plain_wildcard(&v.to_lowercase(), &world.authority.to_lowercase())
                    }) && holds(&op.methods, &|v| plain_wildcard(v, world.method))
                        && holds(&op.paths, &|v| {
                            if v.contains('{') {
                                plain_template(v, world.path)
                            } else {
                                plain_wildcard(v, world.path)
                            }
                        }))
        });
    let when = rule.when.iter().all(|(key, lists)| match key.as_str() {
        "source.ip" => holds(lists, &|v| plain_cidr(v, world.source.ip())),
        "source.namespace" => holds(lists, &namespace),
        "source.principal" => holds(lists, &|v| plain_principal(v, world)),
        "source.serviceAccount" => holds(lists, &|v| plain_account(v, policy, world)),
        "source.trustDomain" => holds(lists, &|v| plain_trust_domain(v, world)),
        "destination.ip" => holds(lists, &|v| plain_cidr(v, world.destination.ip())),
        "destination.port" => holds(lists, &port),
        "connection.sni" => holds(lists, &|v| world.sni.is_some_and(|sni| plain_wildcard(v, sni))),
        header => {
            let name = header.trim_start_matches("request.headers[").trim_end_matches(']');
            let values: Vec<&str> = world
                .headers
                .iter()
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| *v)
                .collect();
            !http
                || holds(lists, &|v| {
                    !values.is_empty() && (v == "*" || plain_wildcard(v, &values.join(",")))
                })
        }
    });
    from && to && when
}

/// `None`: allowed. Otherwise the names of the DENY policies that matched; none: nothing allowed.
pub(super) fn plain_verdict(
    policies: &[PlainPolicy],
    world: &World,
    http: bool,
) -> Option<Vec<String>> {
    let matching = |action: Action| -> Vec<&PlainPolicy> {
        policies
            .iter()
            .filter(|p| p.action == action)
            .filter(|p| p.rules.iter().any(|rule| plain_rule(p, rule, world, http)))
            .collect()
    };
    let denying = matching(Action::Deny);
    if !denying.is_empty() {
        return Some(denying.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect());
    }
    let some_allow = policies.iter().any(|p| p.action == Action::Allow);
    (some_allow && matching(Action::Allow).is_empty()).then(Vec::new)
}
