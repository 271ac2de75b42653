//! The evaluator against a deliberately plain reference.
//!
//! The reference reads policies as they are written, as lists of strings, and follows the prose
//! of Istio's AuthorizationPolicy reference with formatted strings and loops. It shares no code
//! with the evaluator, not even for wildcards.

mod generate;
mod plain;

use std::net::IpAddr;
use std::sync::Arc;

use fairlead_types::TrustDomain;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use self::generate::{random_policies, random_world};
use self::plain::{Lists, PlainPolicy, PlainRule, plain_verdict};
use super::*;
use crate::matcher::{HeaderKey, StringMatch};
use crate::testing::Rng;
use crate::{ConnView, RequestView};

fn lists<T>(lists: &Lists, parse: impl Fn(&str) -> Vec<T>) -> Values<T> {
    let all = |values: &[String]| values.iter().flat_map(|v| parse(v)).collect();
    Values::new(all(&lists.0), all(&lists.1))
}

fn cidr(value: &str) -> Vec<ipnet::IpNet> {
    vec![value.parse().unwrap_or_else(|_| ipnet::IpNet::from(value.parse::<IpAddr>().unwrap()))]
}

fn compile(policy: &PlainPolicy, trust_domains: &[TrustDomain]) -> Policy {
    let principals = |l: &Lists| lists(l, |v| PrincipalMatch::parse(v, trust_domains).unwrap());
    let namespaces = |l: &Lists| lists(l, |v| vec![NamespaceMatch::parse(v).unwrap()]);
    let domains = |l: &Lists| lists(l, |v| TrustDomainMatch::parse(v, trust_domains).unwrap());
    let accounts =
        |l: &Lists| lists(l, |v| vec![ServiceAccountMatch::parse(v, &policy.namespace).unwrap()]);
    let ports = |l: &Lists| lists(l, |v| vec![v.parse::<u16>().unwrap()]);
    let texts = |l: &Lists| lists(l, |v| vec![StringMatch::wildcard(v)]);
    let rule = |rule: &PlainRule| Rule {
        from: rule
            .from
            .iter()
            .map(|source| Source {
                principals: principals(&source.principals),
                namespaces: namespaces(&source.namespaces),
                service_accounts: accounts(&source.service_accounts),
                trust_domains: domains(&source.trust_domains),
                ip_blocks: lists(&source.ip_blocks, cidr),
            })
            .collect(),
        to: rule
            .to
            .iter()
            .map(|op| Operation {
                hosts: texts(&op.hosts),
                ports: ports(&op.ports),
                methods: texts(&op.methods),
                paths: lists(&op.paths, |v| vec![PathMatch::parse(v).unwrap()]),
            })
            .collect(),
        when: rule
            .when
            .iter()
            .map(|(key, l)| match key.as_str() {
                "source.ip" => Condition::SourceIp(lists(l, cidr)),
                "source.namespace" => Condition::SourceNamespace(namespaces(l)),
                "source.principal" => Condition::SourcePrincipal(principals(l)),
                "source.serviceAccount" => Condition::SourceServiceAccount(accounts(l)),
                "source.trustDomain" => Condition::SourceTrustDomain(domains(l)),
                "destination.ip" => Condition::DestinationIp(lists(l, cidr)),
                "destination.port" => Condition::DestinationPort(ports(l)),
                "connection.sni" => Condition::Sni(texts(l)),
                header => {
                    let name = &header["request.headers[".len()..header.len() - 1];
                    Condition::Header(HeaderKey::parse(name).unwrap(), texts(l))
                }
            })
            .collect(),
        never: false,
    };
    Policy {
        name: PolicyName {
            namespace: policy.namespace.as_str().into(),
            name: policy.name.as_str().into(),
        },
        action: policy.action,
        rules: policy.rules.iter().map(rule).collect(),
    }
}

#[test]
fn agrees_with_the_reference() {
    const SETS: usize = 6_000;
    const REQUESTS: usize = 12;
    let mut rng = Rng::new("agrees_with_the_reference");
    // By transport and verdict: allowed, denied by a policy, allowed by none.
    let mut seen = [[0usize; 3]; 2];
    let mut early = 0;
    for _ in 0..SETS {
        let plain = random_policies(&mut rng);
        for _ in 0..REQUESTS {
            let world = random_world(&mut rng);
            let domains: Vec<TrustDomain> =
                world.trust_domains.iter().map(|td| td.parse().unwrap()).collect();
            let set = AuthzSet::new(plain.iter().map(|p| Arc::new(compile(p, &domains))), "root");
            let mut headers = HeaderMap::new();
            for (name, value) in &world.headers {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_static(value));
            }
            let conn = ConnView {
                peer: world.peer.as_ref(),
                source: world.source,
                destination: world.destination,
                sni: world.sni,
            };
            let method = Method::from_bytes(world.method.as_bytes()).unwrap();
            let request = RequestView {
                method: &method,
                scheme: "http",
                authority: world.authority,
                path: world.path,
                query: None,
                headers: &headers,
            };
            for (transport, verdict) in
                [set.connection(&conn), set.request(&conn, &request)].into_iter().enumerate()
            {
                let want = plain_verdict(&plain, &world, transport == 1);
                let kind = match (&verdict, &want) {
                    (Verdict::Allow, None) => 0,
                    (Verdict::Deny(DenyReason::Matched { policy, .. }), Some(names))
                        if names.contains(&policy.to_string()) =>
                    {
                        1
                    }
                    (Verdict::Deny(DenyReason::NoneAllowed), Some(names)) if names.is_empty() => 2,
                    _ => panic!(
                        "transport {transport}: {verdict:?} but the reference says {want:?}\n\
                         policies {plain:#?}\nconnection {conn:?}\nrequest {request:?}\n\
                         trust domains {:?}",
                        world.trust_domains
                    ),
                };
                seen[transport][kind] += 1;
            }
            // What may be decided once for a whole connection has to hold for its requests.
            if !set.needs_http(world.destination.port()) {
                assert_eq!(set.connection(&conn), set.request(&conn, &request), "{plain:#?}");
                early += 1;
            }
        }
    }
    println!("verdicts (allow, deny, none) on bytes {:?}, on requests {:?}", seen[0], seen[1]);
    for kind in seen.iter().flatten().chain([&early]) {
        assert!(*kind > SETS * REQUESTS / 20, "hardly ever seen: {seen:?}, early {early}");
    }
}
