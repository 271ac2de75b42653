//! From the words of the snapshot to the labels of telemetry.

use std::collections::HashMap;
use std::sync::Arc;

use fairlead_config::model::{Service, Snapshot, Workload};
use fairlead_telemetry::{
    ConnectionSecurity, Protocol, Reporter, ServiceLabels, Telemetry, TrafficLabels, WorkloadLabels,
};
use fairlead_types::SpiffeId;
use parking_lot::RwLock;

/// Services whose labels are remembered at most; beyond it the memory starts anew.
const SERVICES_MAX: usize = 65_536;

/// A service of the configuration, and its labels.
type KnownService = (Arc<Service>, ServiceLabels);

/// Labels that were made before.
#[derive(Default)]
pub(crate) struct LabelCache {
    services: RwLock<HashMap<Arc<str>, KnownService>>,
}

impl LabelCache {
    /// The labels of a service; made once for each object of the configuration.
    pub(crate) fn service(&self, service: &Arc<Service>) -> ServiceLabels {
        if let Some((known, labels)) = self.services.read().get(&service.host)
            && Arc::ptr_eq(known, service)
        {
            return labels.clone();
        }
        let labels = ServiceLabels::new(&service.host, &service.name, &service.namespace);
        let mut services = self.services.write();
        if services.len() >= SERVICES_MAX {
            services.clear();
        }
        services.insert(Arc::clone(&service.host), (Arc::clone(service), labels.clone()));
        labels
    }
}

/// The labels of a workload.
pub(crate) fn workload(
    telemetry: &Telemetry,
    snapshot: &Snapshot,
    workload: &Arc<Workload>,
) -> WorkloadLabels {
    telemetry.workload_labels(&workload.id, workload, |w| {
        WorkloadLabels::new(
            &w.workload_name,
            &w.namespace,
            w.enrolled.then_some(&w.identity),
            &w.app,
            &w.version,
            &w.canonical_name,
            &w.canonical_revision,
            &snapshot.mesh.cluster_name,
        )
    })
}

/// `upstream_cluster` of a pod's own application (Istio).
pub(crate) fn inbound_cluster(port: u16) -> Arc<str> {
    format!("inbound|{port}||").into()
}

/// Who talks to whom.
#[derive(Clone)]
pub(crate) struct Parties {
    pub(crate) source: WorkloadLabels,
    pub(crate) destination: WorkloadLabels,
    pub(crate) service: ServiceLabels,
    /// Which sides this node reports.
    pub(crate) sides: Sides,
    /// The identity of the client, as far as the destination has verified it.
    pub(crate) verified: Option<SpiffeId>,
}

impl Parties {
    /// The destination is reached without a proof of who it is.
    pub(crate) fn destination_unproven(&mut self) {
        self.destination = self.destination.with_principal(None);
    }
}

/// The sides that this node reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    /// The destination is elsewhere.
    Source,
    /// The source is elsewhere.
    Destination,
    /// Both are here.
    Both,
}

impl Parties {
    /// The label sets to report under: the first always, the second when both ends are here.
    pub(crate) fn labels(&self, protocol: Protocol) -> (TrafficLabels, Option<TrafficLabels>) {
        let of = |reporter| TrafficLabels {
            reporter,
            source: self.source.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            protocol,
            security: match (reporter, &self.verified) {
                (Reporter::Source, _) => ConnectionSecurity::Unknown,
                (Reporter::Destination, Some(_)) => ConnectionSecurity::MutualTls,
                (Reporter::Destination, None) => ConnectionSecurity::None,
            },
        };
        match self.sides {
            Sides::Source => (of(Reporter::Source), None),
            Sides::Destination => (of(Reporter::Destination), None),
            Sides::Both => (of(Reporter::Source), Some(of(Reporter::Destination))),
        }
    }

    /// The reporter that the access log names.
    pub(crate) fn reporter(&self) -> Reporter {
        match self.sides {
            Sides::Source | Sides::Both => Reporter::Source,
            Sides::Destination => Reporter::Destination,
        }
    }
}
