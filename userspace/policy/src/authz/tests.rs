use std::sync::Arc;

use fairlead_types::{SpiffeId, TrustDomain};
use http::{HeaderMap, Method};

use super::*;
use crate::matcher::StringMatch;
use crate::{ConnView, RequestView};

fn policy(namespace: &str, name: &str, action: Action, rules: Vec<Rule>) -> Arc<Policy> {
    let name = PolicyName { namespace: namespace.into(), name: name.into() };
    Arc::new(Policy { name, action, rules: rules.into() })
}

fn methods(names: &[&str]) -> Rule {
    let methods = Values::new(names.iter().map(|m| StringMatch::wildcard(m)).collect(), vec![]);
    Rule { to: [Operation { methods, ..Operation::default() }].into(), ..Rule::default() }
}

fn port(number: u16) -> Rule {
    let ports = Values::new(vec![number], vec![]);
    Rule { to: [Operation { ports, ..Operation::default() }].into(), ..Rule::default() }
}

fn conn(peer: Option<&SpiffeId>) -> ConnView<'_> {
    ConnView {
        peer,
        source: "10.0.0.1:4000".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        sni: None,
    }
}

fn get(set: &AuthzSet, path: &str) -> Verdict {
    let request = RequestView {
        method: &Method::GET,
        scheme: "http",
        authority: "web",
        path,
        query: None,
        headers: &HeaderMap::new(),
    };
    set.request(&conn(None), &request)
}

fn set(policies: &[Arc<Policy>]) -> AuthzSet {
    AuthzSet::new(policies.iter().cloned(), "istio-system")
}

/// The table of Istio's "implicit enablement" and its empty forms.
#[test]
fn empty_forms() {
    let allow_nothing = policy("a", "allow-nothing", Action::Allow, vec![]);
    let allow_all = policy("a", "allow-all", Action::Allow, vec![Rule::default()]);
    let deny_nothing = policy("a", "deny-nothing", Action::Deny, vec![]);
    let deny_all = policy("a", "deny-all", Action::Deny, vec![Rule::default()]);
    let audit_all = policy("a", "audit-all", Action::Audit, vec![Rule::default()]);
    for (policies, allowed) in [
        (vec![], true),
        (vec![&allow_nothing], false),
        (vec![&allow_all], true),
        (vec![&allow_nothing, &allow_all], true),
        (vec![&deny_nothing], true),
        (vec![&deny_nothing, &allow_nothing], false),
        (vec![&deny_all], false),
        (vec![&deny_all, &allow_all], false),
        (vec![&audit_all], true),
        (vec![&audit_all, &allow_nothing], false),
    ] {
        let set = set(&policies.into_iter().cloned().collect::<Vec<_>>());
        assert_eq!(set.connection(&conn(None)).is_allow(), allowed, "{set:?}");
        assert_eq!(get(&set, "/").is_allow(), allowed, "{set:?}");
    }
    let audited = set(&[audit_all]);
    assert_eq!(audited.audited(&conn(None), None).count(), 1);
}

#[test]
fn request_conditions_on_a_connection_of_bytes() {
    let bytes = |action| set(&[policy("a", "p", action, vec![methods(&["GET"])])]);
    assert!(!bytes(Action::Allow).connection(&conn(None)).is_allow(), "such a rule cannot allow");
    assert!(!bytes(Action::Deny).connection(&conn(None)).is_allow(), "it denies without them");
    // The port still counts.
    let mut rule = methods(&["GET"]);
    rule.to[0].ports = Values::new(vec![81], vec![]);
    let other_port = set(&[policy("a", "p", Action::Deny, vec![rule])]);
    assert!(other_port.connection(&conn(None)).is_allow());
    assert!(!other_port.needs_http(80));
    assert!(other_port.needs_http(81));
}

#[test]
fn a_rule_that_cannot_be_enforced_never_allows() {
    let never = Rule { never: true, ..Rule::default() };
    let set = set(&[policy("a", "p", Action::Allow, vec![never])]);
    assert_eq!(get(&set, "/"), Verdict::Deny(DenyReason::NoneAllowed));
    assert!(!set.connection(&conn(None)).is_allow());
}

#[test]
fn reasons() {
    let deny = |ns: &str, name: &str| policy(ns, name, Action::Deny, vec![port(81), port(80)]);
    let all = set(&[deny("a", "b"), deny("a", "a"), deny("istio-system", "z")]);
    let Verdict::Deny(reason) = get(&all, "/") else { panic!("allowed") };
    assert_eq!(
        reason.to_string(),
        "rbac_access_denied_matched_policy[ns[istio-system]-policy[z]-rule[1]]: denied by rule 1 \
         of AuthorizationPolicy istio-system/z"
    );
    let Verdict::Deny(reason) = get(&set(&[deny("a", "b"), deny("a", "a")]), "/") else {
        panic!("allowed")
    };
    assert_eq!(reason.code(), "rbac_access_denied_matched_policy[ns[a]-policy[a]-rule[1]]");
    assert_eq!(
        DenyReason::NoneAllowed.to_string(),
        "rbac_access_denied_matched_policy[none]: no ALLOW policy matched"
    );
}

#[test]
fn principals_and_trust_domains() {
    let id = |s: &str| s.parse::<SpiffeId>().unwrap();
    let domains: Vec<TrustDomain> = ["td2", "td1"].map(|td| td.parse().unwrap()).into();
    let matches = |pattern: &str, peer: &str| {
        let all = PrincipalMatch::parse(pattern, &domains).unwrap();
        all.iter().any(|p| p.matches(&id(peer)))
    };
    let alice = "spiffe://td1/ns/a/sa/alice";
    for pattern in [
        "*",
        "td1/ns/a/sa/alice",
        "td2/ns/a/sa/alice",
        "cluster.local/ns/a/sa/alice",
        "*/ns/a/sa/alice",
        "*1/ns/a/sa/alice",
        "*2/ns/a/sa/alice",
        "td2/ns/a/sa/*",
        "td1/ns/a*",
        "*ice",
        "t*",
    ] {
        assert!(matches(pattern, alice), "{pattern}");
    }
    for pattern in [
        "td3/ns/a/sa/alice",
        "td1/ns/a/sa/alic",
        "td1/ns/a/sa/alicea",
        "td2/ns/a*",
        "/ns/a/sa/alice",
        "*/sa/bob",
        "alice",
    ] {
        assert!(!matches(pattern, alice), "{pattern}");
    }
    assert!(PrincipalMatch::parse("spiffe://td1/ns/a/sa/alice", &domains).is_err());
    assert!(PrincipalMatch::parse("", &domains).is_err());
}

#[test]
fn values_of_other_forms() {
    let account = |v: &str| ServiceAccountMatch::parse(v, "a");
    let peer: SpiffeId = "spiffe://any/ns/a/sa/x".parse().unwrap();
    assert!(account("x").unwrap().matches(&peer) && account("a/x").unwrap().matches(&peer));
    assert!(!account("b/x").unwrap().matches(&peer) && !account("xx").unwrap().matches(&peer));
    for bad in ["", "/x", "a/", "a/b/c", "a/*", "*"] {
        assert!(account(bad).is_err(), "{bad:?} was taken");
    }
    for bad in ["", "A", "a/b", ".*", "a b"] {
        assert!(NamespaceMatch::parse(bad).is_err(), "{bad:?} was taken");
    }
    let template = |t: &str, path: &str| PathMatch::parse(t).unwrap().matches(path);
    for (pattern, path, matches) in [
        ("/a/{*}", "/a/b", true),
        ("/a/{*}", "/a/b=c*", true),
        ("/a/{*}", "/a/", false),
        ("/a/{*}", "/a/b/c", false),
        ("/a/{*}/c", "/a/b/c", true),
        ("/a/{**}", "/a/", true),
        ("/a/{**}", "/a", false),
        ("/a/{**}", "/a/b/c/d", true),
        ("/a/{**}.html", "/a/b/c.html", true),
        ("/a/{**}.html", "/a/bxhtml", false),
        ("/a.b/{*}", "/axb/c", false),
        ("/{*}/b/{**}", "/x/b/", true),
        ("*", "", false),
    ] {
        assert_eq!(template(pattern, path), matches, "{pattern} on {path}");
    }
    for bad in ["", "a/{*}", "/a{*}", "/{*}a/b", "/{**}/{*}", "/{**}/{**}", "/{*}{*}", "/{a}/{*}"] {
        assert!(PathMatch::parse(bad).is_err(), "{bad:?} was taken");
    }
}
