use std::net::SocketAddr;

use fairlead_api::security as api;
use fairlead_api::{PolicyTargetReference, WorkloadSelector};
use fairlead_policy::authz::{DenyReason, Verdict};
use fairlead_policy::{ConnView, RequestView};
use fairlead_types::{SpiffeId, WorkloadId};
use http::{HeaderMap, Method};

use super::*;
use crate::model::PeerWire;

/// A pod `app: <app>` in `namespace`.
pub(in super::super) fn workload(namespace: &str, app: &str) -> Workload {
    Workload {
        id: WorkloadId::new(namespace, app),
        name: app.into(),
        namespace: namespace.into(),
        uid: "".into(),
        workload_name: app.into(),
        canonical_name: app.into(),
        canonical_revision: "latest".into(),
        app: app.into(),
        version: "unknown".into(),
        labels: Arc::new([("app", app), ("tier", "front")].into_iter().collect()),
        identity: SpiffeId::new(TrustDomain::default(), namespace, app).unwrap(),
        ips: Box::default(),
        node: "".into(),
        enrolled: true,
        wire: PeerWire::Native,
        exclude_inbound_ports: Box::default(),
        include_inbound_ports: None,
    }
}

fn policy(
    namespace: &str,
    name: &str,
    action: AuthorizationAction,
    rules: Vec<api::Rule>,
) -> AuthorizationPolicy {
    let mut object = AuthorizationPolicy::default();
    object.metadata.namespace = namespace.to_owned();
    object.metadata.name = name.to_owned();
    object.spec.action = action;
    object.spec.rules = rules;
    object
}

fn text(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn from(source: api::Source) -> api::Rule {
    api::Rule { from: vec![api::From { source: Some(source) }], ..api::Rule::default() }
}

fn to(operation: api::Operation) -> api::Rule {
    api::Rule { to: vec![api::To { operation: Some(operation) }], ..api::Rule::default() }
}

fn when(key: &str, values: &[&str]) -> api::Rule {
    let condition =
        api::Condition { key: key.to_owned(), values: text(values), ..api::Condition::default() };
    api::Rule { when: vec![condition], ..api::Rule::default() }
}

fn index(objects: Vec<AuthorizationPolicy>) -> (AuthzIndex, Vec<Problem>) {
    let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    let mut problems = Vec::new();
    let mesh = MeshSettings::default();
    let index = super::compile(&objects, &[], &mesh, &AuthzIndex::default(), &mut problems);
    (index, problems)
}

/// The verdict on `GET /path` to the pod `app: web` in `a` by `cluster.local/ns/a/sa/<account>`.
fn get(index: &AuthzIndex, account: &str, path: &str) -> Verdict {
    let peer: SpiffeId = format!("spiffe://cluster.local/ns/a/sa/{account}").parse().unwrap();
    let conn = ConnView {
        peer: Some(&peer),
        source: SocketAddr::from(([10, 0, 0, 1], 4000)),
        destination: SocketAddr::from(([10, 0, 0, 2], 80)),
        sni: None,
    };
    let request = RequestView {
        method: &Method::GET,
        scheme: "http",
        authority: "web",
        path,
        query: None,
        headers: &HeaderMap::new(),
    };
    index.for_workload(&workload("a", "web")).request(&conn, &request)
}

fn allowed(objects: Vec<AuthorizationPolicy>) -> bool {
    get(&index(objects).0, "x", "/p").is_allow()
}

use AuthorizationAction::{Allow, Audit, Custom, Deny};

#[test]
fn scopes() {
    let nothing = |namespace: &str, selector: Option<(&str, &str)>| {
        let mut object = policy(namespace, "p", Allow, vec![]);
        object.spec.selector = selector
            .map(|(k, v)| WorkloadSelector { match_labels: [(k.to_owned(), v.to_owned())].into() });
        object
    };
    for (object, concerns) in [
        (nothing("istio-system", None), true),
        (nothing("istio-system", Some(("app", "web"))), true),
        (nothing("istio-system", Some(("app", "db"))), false),
        (nothing("a", None), true),
        (nothing("a", Some(("app", "web"))), true),
        (nothing("a", Some(("tier", "front"))), true),
        (nothing("a", Some(("app", "db"))), false),
        (nothing("b", None), false),
        (nothing("b", Some(("app", "web"))), false),
    ] {
        let shown = format!("{:?}", object.spec.selector);
        assert_eq!(allowed(vec![object]), !concerns, "{shown}");
    }
}

#[test]
fn fields_arrive() {
    let source = |s: api::Source| vec![policy("a", "p", Allow, vec![from(s)])];
    let operation = |o: api::Operation| vec![policy("a", "p", Allow, vec![to(o)])];
    let condition = |key: &str, v: &[&str]| vec![policy("a", "p", Allow, vec![when(key, v)])];
    let (s, o) = (api::Source::default, api::Operation::default);
    for (objects, want) in [
        (source(api::Source { principals: text(&["cluster.local/ns/a/sa/x"]), ..s() }), true),
        (source(api::Source { not_principals: text(&["*/sa/x"]), ..s() }), false),
        (source(api::Source { namespaces: text(&["b", "a"]), ..s() }), true),
        (source(api::Source { not_namespaces: text(&["a"]), ..s() }), false),
        (source(api::Source { service_accounts: text(&["x"]), ..s() }), true),
        (source(api::Source { not_service_accounts: text(&["a/x"]), ..s() }), false),
        (source(api::Source { trust_domains: text(&["cluster.local"]), ..s() }), true),
        (source(api::Source { not_trust_domains: text(&["*"]), ..s() }), false),
        (source(api::Source { ip_blocks: text(&["10.0.0.0/24"]), ..s() }), true),
        (source(api::Source { not_ip_blocks: text(&["10.0.0.1"]), ..s() }), false),
        (operation(api::Operation { hosts: text(&["WEB"]), ..o() }), true),
        (operation(api::Operation { not_hosts: text(&["web"]), ..o() }), false),
        (operation(api::Operation { ports: text(&["80"]), ..o() }), true),
        (operation(api::Operation { not_ports: text(&["80"]), ..o() }), false),
        (operation(api::Operation { methods: text(&["GET"]), ..o() }), true),
        (operation(api::Operation { not_methods: text(&["G*"]), ..o() }), false),
        (operation(api::Operation { paths: text(&["/{*}"]), ..o() }), true),
        (operation(api::Operation { not_paths: text(&["/p"]), ..o() }), false),
        (condition("request.headers[Host]", &["web"]), true),
        (condition("request.headers[x-v]", &["*"]), false),
        (condition("source.ip", &["10.0.0.1"]), true),
        (condition("source.namespace", &["b"]), false),
        (condition("source.principal", &["*"]), true),
        (condition("source.serviceAccount", &["x"]), true),
        (condition("source.trustDomain", &["other"]), false),
        (condition("destination.ip", &["10.0.0.2"]), true),
        (condition("destination.port", &["81"]), false),
        (condition("connection.sni", &["*"]), false),
    ] {
        let shown = format!("{:?}", objects[0].spec.rules);
        let (index, problems) = index(objects);
        assert_eq!(problems, [], "{shown}");
        assert_eq!(get(&index, "x", "/p").is_allow(), want, "{shown}");
    }
}

/// Whatever cannot be enforced: it allows nothing, it denies as if it were not there, and it is
/// told.
#[test]
fn never_more_permissive() {
    let (s, o) = (api::Source::default, api::Operation::default);
    for rule in [
        from(api::Source { request_principals: text(&["*"]), ..s() }),
        from(api::Source { not_request_principals: text(&["*"]), ..s() }),
        from(api::Source { remote_ip_blocks: text(&["10.0.0.0/8"]), ..s() }),
        from(api::Source { not_remote_ip_blocks: text(&["10.0.0.0/8"]), ..s() }),
        from(api::Source { ip_blocks: text(&["10.0.0.300"]), ..s() }),
        from(api::Source { not_ip_blocks: text(&["10.0.0.0/33"]), ..s() }),
        from(api::Source { namespaces: text(&["A b"]), ..s() }),
        from(api::Source { principals: text(&["spiffe://cluster.local/ns/b/sa/b"]), ..s() }),
        from(api::Source { service_accounts: text(&["b", "a/*"]), ..s() }),
        from(s()),
        api::Rule { from: vec![api::From { source: None }], ..api::Rule::default() },
        to(o()),
        to(api::Operation { ports: text(&["+81"]), ..o() }),
        to(api::Operation { ports: text(&["81", "http"]), ..o() }),
        to(api::Operation { paths: text(&["/q", "/{**}/{*}"]), ..o() }),
        to(api::Operation { hosts: text(&[""]), ..o() }),
        when("request.auth.claims[iss]", &["x"]),
        when("request.auth.principal", &["x"]),
        when("remote.ip", &["10.9.9.9"]),
        when("experimental.envoy.filters.a[b]", &["x"]),
        when("request.headers", &["x"]),
        when("request.headers[]", &["x"]),
        when("request.headers[:status]", &["x"]),
        when("source.ip", &["nonsense"]),
        when("source.ip", &[]),
        when("", &["x"]),
    ] {
        for (action, others) in [(Allow, None), (Deny, None), (Deny, Some(())), (Custom, None)] {
            let mut objects = vec![policy("a", "p", action, vec![rule.clone()])];
            if others.is_some() {
                objects.push(policy("a", "all", Allow, vec![api::Rule::default()]));
            }
            let (index, problems) = index(objects);
            let verdict = get(&index, "x", "/p");
            assert!(!verdict.is_allow(), "{action:?} {rule:?}");
            assert!(!problems.is_empty(), "{action:?} {rule:?}");
            assert!(problems.iter().all(|p| p.field.starts_with("spec.")), "{problems:?}");
        }
    }
}

#[test]
fn a_sound_rule_beside_an_unsound_one_still_allows() {
    let unsound = from(api::Source { request_principals: text(&["*"]), ..Default::default() });
    let sound = from(api::Source { service_accounts: text(&["x"]), ..Default::default() });
    let (index, problems) = index(vec![policy("a", "p", Allow, vec![unsound, sound])]);
    assert!(get(&index, "x", "/p").is_allow() && !get(&index, "y", "/p").is_allow());
    assert_eq!(
        problems[0].to_string(),
        "AuthorizationPolicy a/p: spec.rules[0].from[0].source.requestPrincipals: error: not \
         supported; the rule allows nothing"
    );
}

#[test]
fn target_references_and_custom() {
    let aimed = |action| {
        let mut object = policy("a", "p", action, vec![api::Rule::default()]);
        object.spec.selector =
            Some(WorkloadSelector { match_labels: [("app".to_owned(), "db".to_owned())].into() });
        object.spec.target_refs = vec![PolicyTargetReference::default()];
        object
    };
    assert!(!allowed(vec![aimed(Allow)]), "it must not allow anybody anything");
    assert!(!allowed(vec![aimed(Deny)]), "nor spare anybody");
    let custom = to(api::Operation { paths: text(&["/p"]), ..Default::default() });
    let (index, problems) = index(vec![policy("a", "p", Custom, vec![custom])]);
    assert!(!get(&index, "x", "/p").is_allow() && get(&index, "x", "/q").is_allow());
    assert_eq!(problems.len(), 1);
    assert!(allowed(vec![policy("a", "p", Audit, vec![api::Rule::default()])]));
}

#[test]
fn dry_run() {
    let deny = |value: &str| {
        let mut object = policy("a", "p", Deny, vec![api::Rule::default()]);
        object.metadata.annotations.insert(DRY_RUN.to_owned(), value.to_owned());
        object
    };
    assert!(allowed(vec![deny("true")]));
    for value in ["false", "0", "yes", ""] {
        assert!(!allowed(vec![deny(value)]), "{value:?}");
    }
}

#[test]
fn a_refused_policy_denies_its_scope() {
    let closed = |app: &str| FailClosed {
        key: ObjectKey::new(Kind::AuthorizationPolicy, "a", "broken"),
        selector: [("app", app)].into_iter().collect(),
    };
    let mesh = MeshSettings::default();
    let compile =
        |closed| super::compile(&[], &[closed], &mesh, &AuthzIndex::default(), &mut Vec::new());
    let Verdict::Deny(DenyReason::Matched { policy, .. }) = get(&compile(closed("web")), "x", "/p")
    else {
        panic!("allowed")
    };
    assert_eq!(policy.to_string(), "a/broken");
    assert!(get(&compile(closed("db")), "x", "/p").is_allow());
}

#[test]
fn what_did_not_change_is_shared() {
    let rule =
        || vec![from(api::Source { principals: text(&["td2/ns/a/sa/x"]), ..Default::default() })];
    let one = Arc::new(policy("a", "one", Allow, rule()));
    let two = Arc::new(policy("a", "two", Allow, vec![]));
    let mesh = MeshSettings::default();
    let compile = |objects: &[&Arc<AuthorizationPolicy>], mesh, previous: &AuthzIndex| {
        let objects: Vec<_> = objects.iter().map(|o| Arc::clone(o)).collect();
        super::compile(&objects, &[], mesh, previous, &mut Vec::new())
    };
    let policies = |index: &AuthzIndex, app: &str| -> Vec<Arc<Policy>> {
        index.for_workload(&workload("a", app)).policies().cloned().collect()
    };
    let first = compile(&[&one, &two], &mesh, &AuthzIndex::default());
    let before = policies(&first, "web");
    assert!(Arc::ptr_eq(&before[0], &policies(&first, "db")[0]), "among workloads");
    // Another object of equal content, and a changed one.
    let again = Arc::new(policy("a", "one", Allow, rule()));
    let changed = Arc::new(policy("a", "two", Allow, vec![api::Rule::default()]));
    let second = compile(&[&again, &changed], &mesh, &first);
    let after = policies(&second, "web");
    assert!(Arc::ptr_eq(&before[0], &after[0]), "among snapshots");
    assert!(!Arc::ptr_eq(&before[1], &after[1]) && before[1] != after[1]);
    assert_eq!(policies(&compile(&[&two], &mesh, &second), "web").len(), 1, "gone");
    // A trust domain is part of what a policy means.
    let moved = MeshSettings { trust_domain: "td2".parse().unwrap(), ..MeshSettings::default() };
    let aliased =
        MeshSettings { trust_domain_aliases: [TrustDomain::default()].into(), ..moved.clone() };
    assert!(!get(&compile(&[&one], &moved, &second), "x", "/p").is_allow());
    assert!(get(&compile(&[&one], &aliased, &second), "x", "/p").is_allow());
}
