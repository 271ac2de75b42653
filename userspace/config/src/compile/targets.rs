//! Which services lead to which ports of a pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fairlead_types::WorkloadId;
use foldhash::fast::RandomState;

use crate::model::TargetPort;

/// The target ports of all pods, by pod and service host.
#[derive(Debug, Default)]
pub(super) struct Targets {
    by_pod: HashMap<WorkloadId, BTreeMap<Arc<str>, Vec<TargetPort>>, RandomState>,
}

impl Targets {
    /// Sets what the service `host` leads to in a pod; empty: nothing any more. Whether anything
    /// changed.
    pub(super) fn set(
        &mut self,
        pod: &WorkloadId,
        host: &Arc<str>,
        ports: Vec<TargetPort>,
    ) -> bool {
        if ports.is_empty() {
            let Some(of_pod) = self.by_pod.get_mut(pod) else { return false };
            let removed = of_pod.remove(host).is_some();
            if of_pod.is_empty() {
                self.by_pod.remove(pod);
            }
            return removed;
        }
        if let Some(of_pod) = self.by_pod.get_mut(pod) {
            return of_pod.insert(Arc::clone(host), ports.clone()).is_none_or(|old| old != ports);
        }
        self.by_pod.entry(pod.clone()).or_default().insert(Arc::clone(host), ports);
        true
    }

    /// All target ports of a pod, ordered by number; of one number the headless service first,
    /// then by host and port of the service.
    pub(super) fn of(&self, pod: &WorkloadId) -> Option<Arc<[TargetPort]>> {
        let of_pod = self.by_pod.get(pod)?;
        let mut all: Vec<TargetPort> = of_pod.values().flatten().cloned().collect();
        all.sort_by(|a, b| {
            let order = |port: &TargetPort| (port.number, !port.service.is_headless());
            order(a)
                .cmp(&order(b))
                .then_with(|| a.service.host.cmp(&b.service.host))
                .then_with(|| a.service_port.cmp(&b.service_port))
        });
        Some(all.into())
    }
}
