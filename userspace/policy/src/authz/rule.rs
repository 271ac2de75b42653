//! One rule of a policy: from, to, when.

use ipnet::IpNet;

use super::value::{
    NamespaceMatch, PathMatch, PrincipalMatch, ServiceAccountMatch, TrustDomainMatch, Values,
};
use crate::matcher::{HeaderKey, StringMatch};
use crate::{ConnView, RequestView};

/// One entry of `rules`: one of `from`, and one of `to`, and all of `when`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `from`: OR; empty is any source.
    pub from: Box<[Source]>,
    /// `to`: OR; empty is any operation.
    pub to: Box<[Operation]>,
    /// `when`: AND.
    pub when: Box<[Condition]>,
    /// The rule has a condition that cannot be enforced and must therefore never allow anything.
    /// In a policy that denies, such a condition is left out instead: it then denies more.
    pub never: bool,
}

/// `from.source`: AND of its fields. Plaintext peers have no identity: no positive list of
/// identities contains them, and every negative one lets them pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// `principals`, `notPrincipals`.
    pub principals: Values<PrincipalMatch>,
    /// `namespaces`, `notNamespaces`.
    pub namespaces: Values<NamespaceMatch>,
    /// `serviceAccounts`, `notServiceAccounts`.
    pub service_accounts: Values<ServiceAccountMatch>,
    /// `trustDomains`, `notTrustDomains`.
    pub trust_domains: Values<TrustDomainMatch>,
    /// `ipBlocks`, `notIpBlocks`.
    pub ip_blocks: Values<IpNet>,
}

/// `to.operation`: AND of its fields. All but the ports need HTTP.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operation {
    /// `hosts`, `notHosts`: the authority as sent, port included, without regard to case. A port
    /// is matched by `host:*`.
    pub hosts: Values<StringMatch>,
    /// `ports`, `notPorts`.
    pub ports: Values<u16>,
    /// `methods`, `notMethods`.
    pub methods: Values<StringMatch>,
    /// `paths`, `notPaths`.
    pub paths: Values<PathMatch>,
}

/// One entry of `when`.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// `request.headers[name]`; `*` means that it is there.
    Header(HeaderKey, Values<StringMatch>),
    /// `source.ip`.
    SourceIp(Values<IpNet>),
    /// `source.namespace`.
    SourceNamespace(Values<NamespaceMatch>),
    /// `source.principal`.
    SourcePrincipal(Values<PrincipalMatch>),
    /// `source.serviceAccount`.
    SourceServiceAccount(Values<ServiceAccountMatch>),
    /// `source.trustDomain`.
    SourceTrustDomain(Values<TrustDomainMatch>),
    /// `destination.ip`.
    DestinationIp(Values<IpNet>),
    /// `destination.port`.
    DestinationPort(Values<u16>),
    /// `connection.sni`.
    Sni(Values<StringMatch>),
}

impl Rule {
    /// Whether the rule can match at `port` and looks at the request. One such condition is
    /// enough, even beside an operation without: the rule then never allows a connection of
    /// bytes, so that its verdict on one says nothing about requests.
    pub(super) fn needs_http(&self, port: u16) -> bool {
        let reachable = |op: &Operation| op.ports.satisfied(|p| *p == port);
        !self.never && self.has_http() && (self.to.is_empty() || self.to.iter().any(reachable))
    }

    fn has_http(&self) -> bool {
        self.when.iter().any(Condition::needs_http) || self.to.iter().any(Operation::needs_http)
    }

    /// Whether a connection of bytes matches, for a policy of `action`.
    pub(super) fn matches_connection(&self, conn: &ConnView<'_>, action: super::Action) -> bool {
        // Istio leaves the whole rule out of a TCP chain when it allows, and only the conditions
        // that need HTTP when it denies.
        if action == super::Action::Allow && self.has_http() {
            return false;
        }
        self.matches(conn, None)
    }

    /// Whether a request matches.
    pub(super) fn matches_request(&self, conn: &ConnView<'_>, request: &RequestView<'_>) -> bool {
        self.matches(conn, Some(request))
    }

    fn matches(&self, conn: &ConnView<'_>, request: Option<&RequestView<'_>>) -> bool {
        !self.never
            && (self.from.is_empty() || self.from.iter().any(|source| source.matches(conn)))
            && (self.to.is_empty() || self.to.iter().any(|op| op.matches(conn, request)))
            && self.when.iter().all(|condition| condition.matches(conn, request))
    }
}

impl Source {
    fn matches(&self, conn: &ConnView<'_>) -> bool {
        let Self { principals, namespaces, service_accounts, trust_domains, ip_blocks } = self;
        principals.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            && namespaces.satisfied(|want| conn.peer.is_some_and(|p| want.matches(p.namespace())))
            && service_accounts.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            && trust_domains.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            && ip_blocks.satisfied(|block| block.contains(&conn.source.ip().to_canonical()))
    }
}

impl Operation {
    fn needs_http(&self) -> bool {
        !(self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty())
    }

    fn matches(&self, conn: &ConnView<'_>, request: Option<&RequestView<'_>>) -> bool {
        let Self { hosts, ports, methods, paths } = self;
        ports.satisfied(|port| *port == conn.destination.port())
            && request.is_none_or(|request| {
                hosts.satisfied(|host| host.matches_ignore_case(request.authority))
                    && methods.satisfied(|method| method.matches(request.method.as_str()))
                    && paths.satisfied(|path| path.matches(request.path))
            })
    }
}

impl Condition {
    fn needs_http(&self) -> bool {
        matches!(self, Self::Header(_, values) if !values.is_empty())
    }

    fn matches(&self, conn: &ConnView<'_>, request: Option<&RequestView<'_>>) -> bool {
        let source = conn.source.ip().to_canonical();
        let destination = conn.destination.ip().to_canonical();
        match self {
            Self::Header(key, values) => request.is_none_or(|request| {
                let value = key.value(request);
                values.satisfied(|want| value.as_ref().is_some_and(|v| want.matches_bytes(v)))
            }),
            Self::SourceIp(values) => values.satisfied(|block| block.contains(&source)),
            Self::SourceNamespace(values) => {
                values.satisfied(|want| conn.peer.is_some_and(|p| want.matches(p.namespace())))
            }
            Self::SourcePrincipal(values) => {
                values.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            }
            Self::SourceServiceAccount(values) => {
                values.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            }
            Self::SourceTrustDomain(values) => {
                values.satisfied(|want| conn.peer.is_some_and(|peer| want.matches(peer)))
            }
            Self::DestinationIp(values) => values.satisfied(|block| block.contains(&destination)),
            Self::DestinationPort(values) => {
                values.satisfied(|port| *port == conn.destination.port())
            }
            Self::Sni(values) => {
                values.satisfied(|want| conn.sni.is_some_and(|sni| want.matches(sni)))
            }
        }
    }
}
