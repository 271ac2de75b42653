//! One rule of an AuthorizationPolicy.

use fairlead_api::security as api;
use fairlead_policy::authz::{
    Action, Condition, NamespaceMatch, Operation, PathMatch, PrincipalMatch, Rule,
    ServiceAccountMatch, Source, TrustDomainMatch, Values,
};
use fairlead_policy::matcher::{HeaderKey, StringMatch};
use fairlead_types::TrustDomain;
use ipnet::IpNet;

use super::problem::Report;
use super::workload::parse_net;

/// Compiles the rules of one policy.
pub(super) struct RuleCompiler<'a, 'r> {
    action: Action,
    namespace: &'a str,
    trust_domains: &'a [TrustDomain],
    report: &'a mut Report<'r>,
    /// Whether everything that was written can be enforced.
    sound: bool,
}

impl<'a, 'r> RuleCompiler<'a, 'r> {
    pub(super) fn new(
        action: Action,
        namespace: &'a str,
        trust_domains: &'a [TrustDomain],
        report: &'a mut Report<'r>,
    ) -> Self {
        Self { action, namespace, trust_domains, report, sound: true }
    }

    pub(super) fn compile(mut self, rule: &api::Rule, field: &str) -> Rule {
        let from = rule.from.iter().enumerate().map(|(i, from)| {
            self.source(from.source.as_ref(), &format!("{field}.from[{i}].source"))
        });
        let from = from.collect();
        let to = rule.to.iter().enumerate().map(|(i, to)| {
            self.operation(to.operation.as_ref(), &format!("{field}.to[{i}].operation"))
        });
        let to = to.collect();
        let when =
            rule.when.iter().enumerate().filter_map(|(i, condition)| {
                self.condition(condition, &format!("{field}.when[{i}]"))
            });
        let when = when.collect();
        Rule { from, to, when, never: !self.sound && self.action == Action::Allow }
    }

    /// Something that cannot be enforced.
    fn unsound(&mut self, field: &str, message: &str) {
        self.sound = false;
        let consequence = match self.action {
            Action::Allow => "the rule allows nothing",
            Action::Deny | Action::Audit => "the rule applies as if this were not there",
        };
        self.report.error(field, format!("{message}; {consequence}"));
    }

    /// A list and its negation. In a rule that denies, a positive list with an entry that cannot
    /// be read is left out: which entries it was to match is not known.
    fn values<T>(
        &mut self,
        field: &str,
        (name, any): (&str, &[String]),
        (not_name, none): (&str, &[String]),
        parse: impl Fn(&str) -> Result<Vec<T>, String>,
    ) -> Values<T> {
        let mut list = |name: &str, written: &[String]| {
            let mut parsed = Vec::with_capacity(written.len());
            let mut complete = true;
            for (i, value) in written.iter().enumerate() {
                match parse(value) {
                    Ok(values) => parsed.extend(values),
                    Err(message) => {
                        complete = false;
                        self.unsound(&format!("{field}.{name}[{i}]"), &message);
                    }
                }
            }
            (parsed, complete)
        };
        let (any, complete) = list(name, any);
        let (none, _) = list(not_name, none);
        Values::new(if complete { any } else { Vec::new() }, none)
    }

    fn source(&mut self, written: Option<&api::Source>, field: &str) -> Source {
        let Some(s) = written.filter(|source| **source != api::Source::default()) else {
            self.unsound(field, "is missing or empty");
            return Source::default();
        };
        for (values, name) in [
            (&s.request_principals, "requestPrincipals"),
            (&s.not_request_principals, "notRequestPrincipals"),
            (&s.remote_ip_blocks, "remoteIpBlocks"),
            (&s.not_remote_ip_blocks, "notRemoteIpBlocks"),
        ] {
            if !values.is_empty() {
                self.unsound(&format!("{field}.{name}"), "not supported");
            }
        }
        let (trust_domains, namespace) = (self.trust_domains, self.namespace);
        Source {
            principals: self.values(
                field,
                ("principals", &s.principals),
                ("notPrincipals", &s.not_principals),
                |v| principals(v, trust_domains),
            ),
            namespaces: self.values(
                field,
                ("namespaces", &s.namespaces),
                ("notNamespaces", &s.not_namespaces),
                namespaces,
            ),
            service_accounts: self.values(
                field,
                ("serviceAccounts", &s.service_accounts),
                ("notServiceAccounts", &s.not_service_accounts),
                |v| service_accounts(v, namespace),
            ),
            trust_domains: self.values(
                field,
                ("trustDomains", &s.trust_domains),
                ("notTrustDomains", &s.not_trust_domains),
                |v| trust_domain(v, trust_domains),
            ),
            ip_blocks: self.values(
                field,
                ("ipBlocks", &s.ip_blocks),
                ("notIpBlocks", &s.not_ip_blocks),
                nets,
            ),
        }
    }

    fn operation(&mut self, written: Option<&api::Operation>, field: &str) -> Operation {
        let Some(o) = written.filter(|operation| **operation != api::Operation::default()) else {
            self.unsound(field, "is missing or empty");
            return Operation::default();
        };
        Operation {
            hosts: self.values(field, ("hosts", &o.hosts), ("notHosts", &o.not_hosts), texts),
            ports: self.values(field, ("ports", &o.ports), ("notPorts", &o.not_ports), ports),
            methods: self.values(
                field,
                ("methods", &o.methods),
                ("notMethods", &o.not_methods),
                texts,
            ),
            paths: self.values(field, ("paths", &o.paths), ("notPaths", &o.not_paths), |v| {
                PathMatch::parse(v).map(|path| vec![path]).map_err(|error| error.to_string())
            }),
        }
    }

    /// `None`: it cannot be enforced.
    fn condition(&mut self, written: &api::Condition, field: &str) -> Option<Condition> {
        let (any, none) = (("values", &*written.values), ("notValues", &*written.not_values));
        if any.1.is_empty() && none.1.is_empty() {
            self.unsound(field, "has neither values nor notValues");
            return None;
        }
        let (trust_domains, namespace) = (self.trust_domains, self.namespace);
        let key = written.key.as_str();
        Some(match key {
            "source.ip" => Condition::SourceIp(self.values(field, any, none, nets)),
            "source.namespace" => {
                Condition::SourceNamespace(self.values(field, any, none, namespaces))
            }
            "source.principal" => Condition::SourcePrincipal(
                self.values(field, any, none, |v| principals(v, trust_domains)),
            ),
            "source.serviceAccount" => {
                Condition::SourceServiceAccount(
                    self.values(field, any, none, |v| service_accounts(v, namespace)),
                )
            }
            "source.trustDomain" => {
                Condition::SourceTrustDomain(
                    self.values(field, any, none, |v| trust_domain(v, trust_domains)),
                )
            }
            "destination.ip" => Condition::DestinationIp(self.values(field, any, none, nets)),
            "destination.port" => Condition::DestinationPort(self.values(field, any, none, ports)),
            "connection.sni" => Condition::Sni(self.values(field, any, none, texts)),
            _ => {
                let Some(header) = header_name(key) else {
                    let message = format!("the attribute {key:?} is not supported");
                    self.unsound(&format!("{field}.key"), &message);
                    return None;
                };
                match HeaderKey::parse(header) {
                    Ok(header) => Condition::Header(header, self.values(field, any, none, texts)),
                    Err(error) => {
                        self.unsound(&format!("{field}.key"), &error.to_string());
                        return None;
                    }
                }
            }
        })
    }
}

/// The name within `request.headers[name]`.
fn header_name(key: &str) -> Option<&str> {
    key.strip_prefix("request.headers[")?.strip_suffix(']').filter(|name| !name.is_empty())
}

fn principals(value: &str, trust_domains: &[TrustDomain]) -> Result<Vec<PrincipalMatch>, String> {
    PrincipalMatch::parse(value, trust_domains).map_err(|error| {
        format!("{error}: <trust domain>/ns/<namespace>/sa/<service account>, without a scheme")
    })
}

fn namespaces(value: &str) -> Result<Vec<NamespaceMatch>, String> {
    NamespaceMatch::parse(value).map(|one| vec![one]).map_err(|error| error.to_string())
}

fn service_accounts(value: &str, namespace: &str) -> Result<Vec<ServiceAccountMatch>, String> {
    ServiceAccountMatch::parse(value, namespace)
        .map(|one| vec![one])
        .map_err(|error| format!("{error}: <service account> or <namespace>/<service account>"))
}

fn trust_domain(value: &str, known: &[TrustDomain]) -> Result<Vec<TrustDomainMatch>, String> {
    TrustDomainMatch::parse(value, known).map_err(|error| error.to_string())
}

fn nets(value: &str) -> Result<Vec<IpNet>, String> {
    let net = parse_net(value);
    net.map(|net| vec![net]).ok_or_else(|| format!("{value:?} is neither an address nor a CIDR"))
}

fn ports(value: &str) -> Result<Vec<u16>, String> {
    // `+80` would parse.
    let port = value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse::<u16>().ok());
    port.flatten().map(|port| vec![port]).ok_or_else(|| format!("{value:?} is not a port"))
}

fn texts(value: &str) -> Result<Vec<StringMatch>, String> {
    if value.is_empty() {
        return Err("an empty value matches nothing".to_owned());
    }
    Ok(vec![StringMatch::wildcard(value)])
}
