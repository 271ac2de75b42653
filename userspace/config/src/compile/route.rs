//! What HTTP and TCP routes are compiled with, and how their destinations are resolved.

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_api::StringMap;
use fairlead_api::networking::Destination;
use fairlead_policy::filter::headers::HeaderOps;
use fairlead_policy::route::{ClusterId, Weighted, WeightedDestination};
use fairlead_types::Labels;

use super::client::Client;
use super::clusters::ClusterLookup;
use super::host::complete;
use super::problem::Report;
use super::virtual_service::Entry;
use crate::model::MeshSettings;

/// Stands for a destination that does not exist: no snapshot has a cluster of this number, so
/// that its share of traffic gets what Envoy gives for an unknown cluster (503, flag `NC`).
pub(super) const NO_CLUSTER: ClusterId = ClusterId(u32::MAX);

/// The place that a table is compiled for.
pub(super) struct RouteContext<'a> {
    pub(super) entry: &'a Entry,
    /// The clients; `None`: any that no resource names.
    pub(super) client: Option<&'a Client>,
    /// Port of the service; `None`: unknown, as for hosts that are no service.
    pub(super) port: Option<u16>,
    pub(super) clusters: &'a ClusterLookup<'a>,
    pub(super) mesh: &'a MeshSettings,
}

/// What compiling a table brings up besides the table.
pub(super) struct Findings<'a> {
    pub(super) report: Report<'a>,
    /// Hosts that destinations named: when one of them changes, so may the table.
    pub(super) hosts: &'a mut BTreeSet<Arc<str>>,
}

/// One destination of a route, whatever the kind of route.
pub(super) struct Choice<'a> {
    pub(super) destination: Option<&'a Destination>,
    pub(super) weight: i32,
    pub(super) headers: HeaderOps,
}

impl RouteContext<'_> {
    /// Resolves destinations; `None` when no traffic can go anywhere. A single destination gets
    /// everything whatever its weight; of several, one without weight gets nothing (Istio
    /// `HTTPRouteDestination.weight`). An unknown one keeps its share.
    pub(super) fn weighted(
        &self,
        choices: Vec<Choice<'_>>,
        field: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Weighted> {
        let single = choices.len() == 1;
        let mut resolved = Vec::with_capacity(choices.len());
        for (i, choice) in choices.into_iter().enumerate() {
            let weight = if single { 1 } else { u32::try_from(choice.weight).unwrap_or(0) };
            let field = format!("{field}[{i}].destination");
            let cluster = match choice.destination {
                Some(destination) => self.cluster(destination, &field, findings),
                None => {
                    findings.report.error(field, "missing; its share of traffic is refused");
                    NO_CLUSTER
                }
            };
            resolved.push(WeightedDestination { weight, cluster, headers: choice.headers });
        }
        if resolved.iter().all(|choice| choice.cluster == NO_CLUSTER) {
            return None;
        }
        let weighted = Weighted::new(resolved);
        if weighted.is_none() {
            findings.report.error(field, "the weights add up to 0; its traffic is refused");
        }
        weighted
    }

    fn cluster(
        &self,
        destination: &Destination,
        field: &str,
        findings: &mut Findings<'_>,
    ) -> ClusterId {
        let namespace = &self.entry.key.namespace;
        let host = complete(&destination.host, namespace, &self.mesh.cluster_domain);
        findings.hosts.insert(Arc::clone(&host));
        let found = self.clusters.destination(
            &host,
            Some(destination.subset.as_str()).filter(|subset| !subset.is_empty()),
            destination.port.map(|port| port.number),
            self.port,
            self.client,
        );
        found.unwrap_or_else(|missing| {
            findings.report.error(
                format!("{field}.{}", missing.field),
                format!("{}; its share of traffic is refused", missing.message),
            );
            NO_CLUSTER
        })
    }
}

/// Whether a match on `port` can be met on the port that is compiled for.
pub(super) fn port_fits(wanted: Option<u32>, port: Option<u16>) -> bool {
    match (wanted, port) {
        (Some(wanted), Some(port)) => wanted == u32::from(port),
        _ => true,
    }
}

/// Labels as policy wants them.
pub(super) fn labels(map: &StringMap) -> Labels {
    map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// A namespace, if one is named.
pub(super) fn namespace(name: &str) -> Option<Box<str>> {
    (!name.is_empty()).then(|| name.into())
}
