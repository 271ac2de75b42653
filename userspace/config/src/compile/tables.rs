//! Route tables of service ports and of hosts that are no service, with their variants for
//! clients of single namespaces.

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_policy::route::{HttpRouteTable, TcpRouteTable};
use fairlead_types::AppProtocol;

use super::client::{Client, namespace_of};
use super::clusters::ClusterLookup;
use super::destination_rule::Rules;
use super::host::{HostPattern, complete, service_of};
use super::problem::{Problem, Report};
use super::route::{Findings, NO_CLUSTER, RouteContext};
use super::services::{PortSpec, ServiceEntry};
use super::virtual_service::{Entry, VirtualServices};
use super::{http_route, tcp_route};
use crate::model::{HostRoutes, MeshSettings, Routes, ServicePort, VirtualHost};

/// All that tables are compiled from.
pub(super) struct Tables<'a> {
    pub(super) mesh: &'a MeshSettings,
    pub(super) virtual_services: &'a VirtualServices,
    pub(super) rules: &'a Rules,
    pub(super) clusters: ClusterLookup<'a>,
    /// Local pods: the only clients that this node serves.
    pub(super) local_clients: &'a BTreeSet<Client>,
}

/// What was compiled, and what has to be known of it.
#[derive(Debug)]
pub(super) struct Compiled<T> {
    pub(super) value: T,
    /// Hosts that destinations named.
    pub(super) hosts: BTreeSet<Arc<str>>,
    pub(super) problems: Vec<Problem>,
}

impl Tables<'_> {
    /// The ports of a service.
    pub(super) fn service(&self, service: &ServiceEntry) -> Compiled<Vec<ServicePort>> {
        let mut hosts = BTreeSet::new();
        let mut problems = Vec::new();
        let host = &service.service.host;
        let mut ports: Vec<ServicePort> = Vec::with_capacity(service.ports.len());
        for spec in &service.ports {
            ports.push(ServicePort {
                service: Arc::clone(&service.service),
                number: spec.number,
                name: spec.name.clone(),
                protocol: spec.protocol,
                common: self.routes(service, spec, None, &mut hosts, &mut problems),
                namespaced: Box::default(),
            });
        }
        let mut clients =
            self.virtual_services.special_clients(&HostPattern::Exact(Arc::clone(host)));
        self.special_clients(host, &mut clients);
        for named in &hosts {
            self.special_clients(named, &mut clients);
        }
        for client in self.local(&clients) {
            for (spec, port) in service.ports.iter().zip(&mut ports) {
                let routes = self.routes(service, spec, Some(client), &mut hosts, &mut problems);
                if routes != port.common {
                    let mut variants = std::mem::take(&mut port.namespaced).into_vec();
                    variants.push((Arc::clone(client.name()), routes));
                    port.namespaced = variants.into();
                }
            }
        }
        problems.sort();
        problems.dedup();
        Compiled { value: ports, hosts, problems }
    }

    /// The local clients of some namespaces, in order of names.
    fn local(&self, namespaces: &BTreeSet<Arc<str>>) -> impl Iterator<Item = &Client> {
        self.local_clients.iter().filter(|client| namespaces.contains(client.namespace()))
    }

    fn special_clients(&self, host: &str, clients: &mut BTreeSet<Arc<str>>) {
        if self.rules.tells_clients_apart()
            && let Some(service) = service_of(host, &self.mesh.cluster_domain)
        {
            clients.extend(self.rules.special_clients(host, service.namespace));
        }
    }

    fn routes(
        &self,
        service: &ServiceEntry,
        spec: &PortSpec,
        client: Option<&Client>,
        hosts: &mut BTreeSet<Arc<str>>,
        problems: &mut Vec<Problem>,
    ) -> Routes {
        let host = &service.service.host;
        let default_cluster = self
            .clusters
            .destination(host, None, Some(spec.number.into()), None, client)
            .unwrap_or(NO_CLUSTER);
        let mut routes = Routes { http: None, tcp: None, default_cluster };
        let Some(entry) = self.virtual_services.select(host, namespace_of(client)) else {
            return routes;
        };
        let context = self.context(entry, client, Some(spec.number));
        let mut findings = Findings { report: Report::new(&entry.key, problems), hosts };
        // Where nothing is declared, the first bytes decide which of the two tables is asked.
        if spec.protocol.is_http() || spec.protocol == AppProtocol::Detect {
            let table = http_route::compile(&context, &mut findings);
            routes.http = (!table.is_empty()).then(|| http_table(table));
        }
        if !spec.protocol.is_http() {
            let mut table = Vec::new();
            if matches!(spec.protocol, AppProtocol::Tls | AppProtocol::Https) {
                table.extend(tcp_route::refuse_tls(&context, &mut findings));
            }
            table.extend(tcp_route::compile(&context, &mut findings));
            routes.tcp =
                (!table.is_empty()).then(|| Arc::new(TcpRouteTable { routes: table.into() }));
        }
        routes
    }

    fn context<'a>(
        &'a self,
        entry: &'a Entry,
        client: Option<&'a Client>,
        port: Option<u16>,
    ) -> RouteContext<'a> {
        RouteContext { entry, client, port, clusters: &self.clusters, mesh: self.mesh }
    }

    /// A host of VirtualServices that is no service; `None` when none has HTTP routes for it.
    pub(super) fn virtual_host(&self, pattern: &HostPattern) -> Compiled<Option<VirtualHost>> {
        let mut hosts = BTreeSet::new();
        let mut problems = Vec::new();
        let common = self.host_routes(pattern, None, &mut hosts, &mut problems);
        let mut clients = self.virtual_services.special_clients(pattern);
        for named in &hosts {
            self.special_clients(named, &mut clients);
        }
        let mut namespaced = Vec::new();
        for client in self.local(&clients) {
            let routes = self.host_routes(pattern, Some(client), &mut hosts, &mut problems);
            if routes != common {
                namespaced.push((Arc::clone(client.name()), routes));
            }
        }
        problems.sort();
        problems.dedup();
        let value = (common.is_some() || !namespaced.is_empty()).then(|| VirtualHost {
            host: pattern.display(),
            common,
            namespaced: namespaced.into(),
        });
        Compiled { value, hosts, problems }
    }

    fn host_routes(
        &self,
        pattern: &HostPattern,
        client: Option<&Client>,
        hosts: &mut BTreeSet<Arc<str>>,
        problems: &mut Vec<Problem>,
    ) -> Option<HostRoutes> {
        let entry = self.virtual_services.select_pattern(pattern, namespace_of(client))?;
        let spec = &entry.object.spec;
        if let HostPattern::Exact(host) = pattern {
            for (any, field) in [(!spec.tcp.is_empty(), "tcp"), (!spec.tls.is_empty(), "tls")] {
                if any {
                    Report::new(&entry.key, problems).warning(
                        format!("spec.{field}"),
                        format!(
                            "there is no service {host}: without its address these have no effect"
                        ),
                    );
                }
            }
        }
        if spec.http.is_empty() {
            return None;
        }
        let ports = self.ports_that_matter(entry);
        let by_port: Box<[_]> = ports
            .iter()
            .map(|port| {
                let context = self.context(entry, client, Some(*port));
                let mut findings =
                    Findings { report: Report::new(&entry.key, problems), hosts: &mut *hosts };
                (*port, http_table(http_route::compile(&context, &mut findings)))
            })
            .collect();
        // With a table for every port that a destination can have, what the one for all others
        // has to say of a missing port is no problem of anybody's.
        let mut unsaid = Vec::new();
        let said = if by_port.is_empty() { problems } else { &mut unsaid };
        let mut findings = Findings { report: Report::new(&entry.key, said), hosts };
        let context = self.context(entry, client, None);
        let default = http_table(http_route::compile(&context, &mut findings));
        Some(HostRoutes { default, by_port })
    }

    /// The ports on which routes of a host differ: those of services with several ports that a
    /// destination names without a port.
    fn ports_that_matter(&self, entry: &Entry) -> BTreeSet<u16> {
        let domain = &self.mesh.cluster_domain;
        entry
            .object
            .spec
            .http
            .iter()
            .flat_map(|route| &route.route)
            .filter_map(|choice| choice.destination.as_ref())
            .filter(|destination| destination.port.is_none())
            .filter_map(|destination| {
                let host = complete(&destination.host, &entry.key.namespace, domain);
                self.clusters.services.get(&host).filter(|service| service.ports.len() > 1)
            })
            .flat_map(|service| service.ports.iter().map(|port| port.number))
            .collect()
    }
}

fn http_table(routes: Vec<fairlead_policy::route::HttpRoute>) -> Arc<HttpRouteTable> {
    Arc::new(HttpRouteTable { routes: routes.into() })
}

/// Problems of VirtualServices that another one of the same host keeps from having an effect.
pub(super) fn conflicts(
    virtual_services: &VirtualServices,
    pattern: &HostPattern,
    domain: &str,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (loser, winner) in virtual_services.losers(pattern) {
        let written =
            |host: &String| HostPattern::new(host, &loser.key.namespace, domain) == *pattern;
        let index = loser.object.spec.hosts.iter().position(written).unwrap_or_default();
        Report::new(&loser.key, &mut problems).warning(
            format!("spec.hosts[{index}]"),
            format!(
                "{} has {} too and is older; this object has no effect on it",
                winner.key,
                pattern.display()
            ),
        );
    }
    problems
}
