//! TCP routes: ordered, first match wins (VirtualService `tcp[]`).

use std::net::SocketAddr;
use std::sync::Arc;

use fairlead_types::Labels;
use ipnet::IpNet;

use super::Weighted;
use crate::SourceView;

/// The TCP routes of one service port, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpRouteTable {
    /// First match wins.
    pub routes: Box<[TcpRoute]>,
}

/// One `tcp[]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    /// Name in the access log.
    pub name: Arc<str>,
    /// OR of these; empty matches everything.
    pub matches: Box<[TcpMatch]>,
    /// Where to; `None` when no destination could be resolved: the connection is refused.
    pub destinations: Option<Weighted>,
}

/// One `match` entry: AND of its fields (VirtualService `L4MatchAttributes`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpMatch {
    /// `destinationSubnets`.
    pub destination_subnets: Box<[IpNet]>,
    /// `port`.
    pub port: Option<u16>,
    /// `sourceLabels`.
    pub source_labels: Labels,
    /// `sourceNamespace`.
    pub source_namespace: Option<Box<str>>,
    /// `sourceSubnet`.
    pub source_subnet: Option<IpNet>,
}

impl TcpRouteTable {
    /// The first route that matches. `destination` is what the application asked for,
    /// `service_port` the port of the service that this address belongs to.
    #[must_use]
    pub fn select(
        &self,
        source: &SourceView<'_>,
        destination: SocketAddr,
        service_port: u16,
    ) -> Option<&TcpRoute> {
        self.routes.iter().find(|route| {
            route.matches.is_empty()
                || route.matches.iter().any(|m| m.matches(source, destination, service_port))
        })
    }
}

impl TcpMatch {
    /// Whether all its fields match.
    #[must_use]
    pub fn matches(
        &self,
        source: &SourceView<'_>,
        destination: SocketAddr,
        service_port: u16,
    ) -> bool {
        let destination = destination.ip().to_canonical();
        self.port.is_none_or(|port| port == service_port)
            && self.source_namespace.as_deref().is_none_or(|ns| ns == source.namespace)
            && self.source_subnet.is_none_or(|net| net.contains(&source.ip.to_canonical()))
            && (self.destination_subnets.is_empty()
                || self.destination_subnets.iter().any(|net| net.contains(&destination)))
            && source.labels.matches(&self.source_labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(m: TcpMatch, source: &str, destination: &str) -> bool {
        let labels: Labels = [("version", "v1")].into_iter().collect();
        let source = SourceView { labels: &labels, namespace: "a", ip: source.parse().unwrap() };
        let route = TcpRoute { name: "r".into(), matches: [m].into(), destinations: None };
        let table = TcpRouteTable { routes: [route].into() };
        table.select(&source, destination.parse().unwrap(), 9000).is_some()
    }

    #[test]
    fn every_field() {
        let any = TcpMatch::default;
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let labels = |v: &'static str| [("version", v)].into_iter().collect();
        for (m, want) in [
            (any(), true),
            (TcpMatch { port: Some(9000), ..any() }, true),
            (TcpMatch { port: Some(80), ..any() }, false),
            (TcpMatch { source_labels: labels("v1"), ..any() }, true),
            (TcpMatch { source_labels: labels("v2"), ..any() }, false),
            (TcpMatch { source_namespace: Some("a".into()), ..any() }, true),
            (TcpMatch { source_namespace: Some("b".into()), ..any() }, false),
            (TcpMatch { source_subnet: Some(net("10.0.0.0/8")), ..any() }, true),
            (TcpMatch { source_subnet: Some(net("11.0.0.0/8")), ..any() }, false),
            (
                TcpMatch { destination_subnets: [net("::/0"), net("10.2.0.0/16")].into(), ..any() },
                true,
            ),
            (TcpMatch { destination_subnets: [net("10.3.0.0/16")].into(), ..any() }, false),
            (TcpMatch { port: Some(9000), source_labels: labels("v2"), ..any() }, false),
        ] {
            let shown = format!("{m:?}");
            assert_eq!(select(m, "10.1.0.1", "10.2.0.1:80"), want, "{shown}");
        }
        let mapped = TcpMatch { destination_subnets: [net("10.2.0.0/16")].into(), ..any() };
        assert!(select(mapped, "::1", "[::ffff:10.2.0.1]:80"), "IPv4 in IPv6 is IPv4");
    }

    #[test]
    fn first_match_wins() {
        let route = |name: &str, matches: Vec<TcpMatch>| TcpRoute {
            name: name.into(),
            matches: matches.into(),
            destinations: None,
        };
        let only_80 = TcpMatch { port: Some(80), ..TcpMatch::default() };
        let table =
            TcpRouteTable { routes: [route("80", vec![only_80]), route("all", vec![])].into() };
        let labels = Labels::default();
        let source = SourceView { labels: &labels, namespace: "a", ip: [10, 0, 0, 1].into() };
        let name = |port| {
            let dst = SocketAddr::from(([10, 0, 0, 2], port));
            table.select(&source, dst, port).map(|r| r.name.to_string())
        };
        assert_eq!((name(80).as_deref(), name(81).as_deref()), (Some("80"), Some("all")));
    }
}
