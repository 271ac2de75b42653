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
