//! Clusters of services: which there are, what numbers they have, and how routes find them.

use std::sync::Arc;

use fairlead_policy::route::ClusterId;

use super::client::Client;
use super::host::service_of;
use super::route::NO_CLUSTER;
use super::services::{ServiceEntry, Services};
use crate::model::ClusterPolicy;

/// One cluster of a service, without its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClusterSpec {
    pub(super) id: ClusterId,
    pub(super) port: u16,
    pub(super) subset: Option<Arc<str>>,
    pub(super) policy: ClusterPolicy,
}

/// The clusters of a service as some clients, or all others, use them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Variant {
    pub(super) client: Option<Client>,
    pub(super) clusters: Vec<ClusterSpec>,
}

impl Variant {
    pub(super) fn find(&self, port: u16, subset: Option<&str>) -> Option<&ClusterSpec> {
        self.clusters.iter().find(|c| c.port == port && c.subset.as_deref() == subset)
    }
}

/// Gives clusters their numbers. A number belongs to its cluster as long as that exists (its
/// service's [`Variant`]s have it), and is not given to another one for the next four billion.
#[derive(Debug, Default)]
pub(super) struct ClusterIds {
    next: u32,
}

impl ClusterIds {
    /// A number for a new cluster.
    pub(super) fn give(&mut self) -> ClusterId {
        let id = ClusterId(self.next);
        self.next = if id.0 + 1 == NO_CLUSTER.0 { 0 } else { id.0 + 1 };
        id
    }
}

/// Why a destination leads nowhere.
#[derive(Debug)]
pub(super) struct Missing {
    /// The field of the destination that is wrong.
    pub(super) field: &'static str,
    /// What is wrong with it.
    pub(super) message: String,
}

/// Finds the clusters of destinations.
pub(super) struct ClusterLookup<'a> {
    pub(super) services: &'a Services,
    pub(super) domain: &'a str,
}

impl ClusterLookup<'_> {
    /// The cluster of a destination. Without a port it is that of the service's only port, else
    /// that of the port that the client asked for (Istio `GetDestinationCluster`).
    pub(super) fn destination(
        &self,
        host: &str,
        subset: Option<&str>,
        port: Option<u32>,
        asked_for: Option<u16>,
        client: Option<&Client>,
    ) -> Result<ClusterId, Missing> {
        let Some(service) = self.services.get(host) else {
            let mut message = format!("there is no service {host}");
            if host.contains('.') && service_of(host, self.domain).is_none() {
                message += &format!(
                    " (a host with a dot is taken as it is: that of a service is \
                     <name>.<namespace>.svc.{})",
                    self.domain
                );
            }
            return Err(Missing { field: "host", message });
        };
        let port = port_of(service, host, port, asked_for)?;
        let variant = service.variant(client);
        variant.and_then(|variant| variant.find(port, subset)).map(|spec| spec.id).ok_or_else(
            || {
                let subset = subset.unwrap_or_default();
                Missing {
                    field: "subset",
                    message: format!("no DestinationRule defines subset {subset:?} of {host}"),
                }
            },
        )
    }
}

fn port_of(
    service: &ServiceEntry,
    host: &str,
    port: Option<u32>,
    asked_for: Option<u16>,
) -> Result<u16, Missing> {
    let missing = |message| Missing { field: "port", message };
    let wanted = match (port, service.ports.as_slice()) {
        (Some(port), _) => u16::try_from(port).ok(),
        (None, [only]) => Some(only.number),
        (None, _) => match asked_for {
            Some(port) => Some(port),
            None => {
                return Err(missing(format!("{host} has several ports: say which")));
            }
        },
    };
    let known = wanted.filter(|port| service.ports.iter().any(|p| p.number == *port));
    known.ok_or_else(|| {
        let port = wanted.map_or_else(|| port.unwrap_or(0), u32::from);
        let list: Vec<String> = service.ports.iter().map(|p| p.number.to_string()).collect();
        missing(format!("{host} has no TCP port {port}; it has {}", list.join(", ")))
    })
}
