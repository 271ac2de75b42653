//! Random policies and requests over small alphabets, so that they often meet.

use std::net::SocketAddr;

use super::plain::{Lists, PlainOperation, PlainPolicy, PlainRule, PlainSource, World};
use crate::authz::Action;
use crate::testing::Rng;

const PRINCIPALS: &[&str] = &[
    "*",
    "cluster.local/ns/a/sa/x",
    "td2/ns/a/sa/x",
    "old/ns/b/sa/y",
    "foreign/ns/a/sa/x",
    "cluster.local/ns/a/*",
    "cluster.local/ns/a/sa/*",
    "*/ns/ab/sa/x",
    "*/sa/y",
    "td2*",
    "old*",
    "*x",
];
const NAMESPACES: &[&str] = &["a", "b", "ab", "a*", "*b", "*", "a*b", "c"];
const ACCOUNTS: &[&str] = &["x", "y", "a/x", "b/y", "ab/x", "c/z"];
const DOMAINS: &[&str] = &["cluster.local", "td2", "old", "foreign", "*", "td*", "*d", "none"];
const BLOCKS: &[&str] =
    &["10.0.0.1", "10.0.0.0/24", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "fd00::1", "0.0.0.0/0"];
const PORTS: &[&str] = &["80", "8080", "9090"];
const METHODS: &[&str] = &["GET", "POST", "DELETE", "*", "P*"];
const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/*",
    "/a*",
    "*.html",
    "*",
    "/{*}",
    "/a/{*}",
    "/{*}/b",
    "/a/{**}",
    "/{**}",
    "/{*}/b/{**}",
];
const HOSTS: &[&str] = &["web", "WEB", "web:*", "web.a", "*.a", "we*", "*"];
const HEADERS: &[&str] = &["1", "2", "1*", "*2", "*", "1,2"];
const KEYS: &[(&str, &[&str])] = &[
    ("source.ip", BLOCKS),
    ("source.namespace", NAMESPACES),
    ("source.principal", PRINCIPALS),
    ("source.serviceAccount", ACCOUNTS),
    ("source.trustDomain", DOMAINS),
    ("destination.ip", BLOCKS),
    ("destination.port", PORTS),
    ("connection.sni", HOSTS),
    ("request.headers[x-v]", HEADERS),
    ("request.headers[X-Absent]", HEADERS),
];

fn random_lists(rng: &mut Rng, of: &[&str], rarely: usize) -> Lists {
    let mut some = |n: usize| -> Vec<String> {
        if rng.one_in(n) {
            (0..=rng.below(2)).map(|_| rng.choose(of).to_owned()).collect()
        } else {
            Vec::new()
        }
    };
    (some(rarely), some(rarely * 3))
}

fn random_rule(rng: &mut Rng) -> PlainRule {
    let from = (0..rng.below(3))
        .map(|_| PlainSource {
            principals: random_lists(rng, PRINCIPALS, 3),
            namespaces: random_lists(rng, NAMESPACES, 4),
            service_accounts: random_lists(rng, ACCOUNTS, 5),
            trust_domains: random_lists(rng, DOMAINS, 6),
            ip_blocks: random_lists(rng, BLOCKS, 5),
        })
        .collect();
    let to = (0..rng.below(3))
        .map(|_| PlainOperation {
            hosts: random_lists(rng, HOSTS, 5),
            ports: random_lists(rng, PORTS, 4),
            methods: random_lists(rng, METHODS, 4),
            paths: random_lists(rng, PATHS, 3),
        })
        .collect();
    let when = (0..rng.below(5).saturating_sub(2))
        .map(|_| {
            let (key, values) = rng.choose(KEYS);
            (key.to_owned(), random_lists(rng, values, 2))
        })
        .collect();
    PlainRule { from, to, when }
}

pub(super) fn random_policies(rng: &mut Rng) -> Vec<PlainPolicy> {
    (0..rng.below(4))
        .map(|i| PlainPolicy {
            namespace: rng.choose(&["a", "b", "root"]).to_owned(),
            name: format!("p{i}"),
            action: rng.choose(&[Action::Allow, Action::Allow, Action::Deny, Action::Audit]),
            rules: (0..rng.below(4)).map(|_| random_rule(rng)).collect(),
        })
        .collect()
}

pub(super) fn random_world(rng: &mut Rng) -> World {
    let peer = (!rng.one_in(5)).then(|| {
        let td = rng.choose(&["cluster.local", "td2", "old", "foreign"]);
        let (ns, sa) = (rng.choose(&["a", "b", "ab", "aab"]), rng.choose(&["x", "y", "xx"]));
        format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap()
    });
    let address = |rng: &mut Rng, port| {
        let ip = rng.choose(&["10.0.0.1", "10.0.0.2", "10.1.2.3", "192.0.2.1", "fd00::1"]);
        SocketAddr::new(ip.parse().unwrap(), port)
    };
    let port = rng.choose(&[80, 8080, 9090]);
    World {
        trust_domains: rng.choose(&[vec!["cluster.local"], vec!["td2"], vec!["td2", "old"]]),
        peer,
        source: address(rng, 40000),
        destination: address(rng, port),
        sni: rng.choose(&[None, Some("web"), Some("web.a"), Some("other")]),
        method: rng.choose(&["GET", "POST", "PUT", "DELETE"]),
        authority: rng.choose(&["web", "Web", "web:80", "web.a", "WEB.A", "other"]),
        path: rng.choose(&["/", "/a", "/a/", "/a/b", "/a/b/c", "/c/b", "/i.html", "/ab", "/a//b"]),
        headers: match rng.below(4) {
            0 => vec![],
            1 => vec![("x-v", "1")],
            2 => vec![("X-V", "1"), ("x-v", "2")],
            _ => vec![("x-v", "12"), ("x-other", "1")],
        },
    }
}
