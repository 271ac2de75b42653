//! Services, their ports, and the routes that lead from them.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use equivalent::Equivalent;
use fairlead_policy::SourceView;
use fairlead_policy::route::{ClusterId, HttpMatch, HttpRoute, HttpRouteTable, TcpRouteTable};
use fairlead_types::AppProtocol;

/// What telemetry and routing want to know of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Fully qualified host: `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Cluster IPs; empty when headless.
    pub vips: Box<[IpAddr]>,
}

impl Service {
    /// Whether the service has no cluster IP: its name resolves to its pods.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.vips.is_empty()
    }
}

/// Names a service; looked up by [`ServiceRef`] without allocating.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Hash for ServiceKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ServiceRef { namespace: &self.namespace, name: &self.name }.hash(state);
    }
}

/// The borrowed form of [`ServiceKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
}

impl Equivalent<ServiceKey> for ServiceRef<'_> {
    fn equivalent(&self, key: &ServiceKey) -> bool {
        self.name == &*key.name && self.namespace == &*key.namespace
    }
}

/// A port of a service with everything that a connection to it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// The service.
    pub service: Arc<Service>,
    /// Port number.
    pub number: u16,
    /// Port name.
    pub name: Option<Arc<str>>,
    /// Protocol of the port.
    pub protocol: AppProtocol,
    /// Routes for all sources that are not in `namespaced`.
    pub common: Routes,
    /// Routes for single clients ([`super::Snapshot::client`]), where configuration differs
    /// between them (`exportTo`, DestinationRules of the client's namespace, `workloadSelector`);
    /// in order of names.
    pub namespaced: Box<[(Arc<str>, Routes)]>,
}

impl ServicePort {
    /// The routes for a client, as [`super::Snapshot::client`] names it.
    #[must_use]
    pub fn routes(&self, client: &str) -> &Routes {
        // Empty for almost every service, so that this is one length check.
        self.namespaced
            .binary_search_by(|(name, _)| (**name).cmp(client))
            .map_or(&self.common, |found| &self.namespaced[found].1)
    }
}

/// Where traffic to a service port goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// HTTP routes; `None`: no VirtualService has an opinion, straight to `default_cluster`. A
    /// request that no route matches is answered 404. Ask through [`Routes::http`].
    pub http: Option<Arc<HttpRouteTable>>,
    /// TCP routes; `None` likewise. A connection that no route matches goes to `default_cluster`
    /// (Istio adds that route where a VirtualService has no catch-all).
    pub tcp: Option<Arc<TcpRouteTable>>,
    /// The cluster without subset.
    pub default_cluster: ClusterId,
}

impl Routes {
    /// The HTTP routes that a source has to obey. `None` also when every route is for other
    /// sources (`sourceLabels`, `sourceNamespace`): for this one there is then no VirtualService
    /// at all, as with Istio, which leaves routes of other sources out before it asks whether
    /// there are any.
    #[must_use]
    pub fn http(&self, source: &SourceView<'_>) -> Option<&Arc<HttpRouteTable>> {
        let concerns = |m: &HttpMatch| {
            m.source_namespace.as_deref().is_none_or(|namespace| namespace == source.namespace)
                && source.labels.matches(&m.source_labels)
        };
        // Tables begin or end with a route for everybody, so that this looks at one or two.
        let any = |table: &HttpRouteTable| {
            let for_all = |route: &HttpRoute| route.matches.is_empty();
            table.routes.last().is_some_and(for_all)
                || table.routes.iter().any(|r| for_all(r) || r.matches.iter().any(concerns))
        };
        self.http.as_ref().filter(|table| any(table))
    }
}

/// The HTTP routes of VirtualServices for a host that is no service (`bookinfo.example.com`):
/// they apply to HTTP requests by their authority, whatever address was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualHost {
    /// The host as the VirtualService has it, in lower case; `*.example.com` is a wildcard.
    pub host: Arc<str>,
    /// Routes for all sources that are not in `namespaced`; `None`: none is exported to them.
    pub common: Option<HostRoutes>,
    /// Routes for single clients, in order of names; `None`: none is exported to them.
    pub namespaced: Box<[(Arc<str>, Option<HostRoutes>)]>,
}

/// The routes of a [`VirtualHost`].
#[derive(Clone, Debug, PartialEq)]
pub struct HostRoutes {
    /// Routes for a request that came to any port that is not in `by_port`.
    pub default: Arc<HttpRouteTable>,
    /// Routes for requests that came to one port, ordered by port: a destination without `port`
    /// takes that of the request where its service has several (Istio `Destination.port`).
    pub by_port: Box<[(u16, Arc<HttpRouteTable>)]>,
}

impl VirtualHost {
    /// The routes for a request of a client, as [`super::Snapshot::client`] names it, that came to
    /// `port`.
    #[must_use]
    pub fn http(&self, client: &str, port: u16) -> Option<&Arc<HttpRouteTable>> {
        let routes = self
            .namespaced
            .binary_search_by(|(name, _)| (**name).cmp(client))
            .map_or(self.common.as_ref(), |found| self.namespaced[found].1.as_ref())?;
        Some(
            routes
                .by_port
                .binary_search_by_key(&port, |(number, _)| *number)
                .map_or(&routes.default, |found| &routes.by_port[found].1),
        )
    }
}
