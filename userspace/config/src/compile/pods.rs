//! Pods as the compiler keeps them: by name, by label, by address.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::{Pod, Protocol};
use fairlead_types::{Labels, WorkloadId};
use foldhash::fast::RandomState;

use crate::model::Workload;

type Ids = HashSet<WorkloadId, RandomState>;

/// A pod and the workload that was compiled from it.
#[derive(Debug)]
pub(super) struct PodEntry {
    pub(super) object: Arc<Pod>,
    /// `None`: it has come to its end, or cannot have an identity.
    pub(super) workload: Option<Arc<Workload>>,
}

impl PodEntry {
    /// Whether a service may send traffic to it.
    pub(super) fn is_eligible(&self, publish_not_ready: bool) -> bool {
        self.object.metadata.deletion_timestamp.is_none()
            && (publish_not_ready || self.object.is_ready())
    }

    /// The number of its TCP port of that name.
    pub(super) fn named_port(&self, name: &str) -> Option<u16> {
        let spec = &self.object.spec;
        let ports = spec.containers.iter().chain(&spec.init_containers).flat_map(|c| &c.ports);
        ports
            .filter(|port| port.protocol == Protocol::Tcp && port.name == name)
            .map(|port| port.container_port)
            .next()
    }
}

/// All pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_id: HashMap<WorkloadId, PodEntry, RandomState>,
    by_namespace: HashMap<Arc<str>, Ids, RandomState>,
    /// Keys are hashes of (namespace, label, value); what is found is checked.
    by_label: HashMap<u64, Ids, RandomState>,
    /// Who says that an address is its own; one in all cases that are not mistaken.
    by_ip: HashMap<IpAddr, Vec<WorkloadId>, RandomState>,
    hasher: RandomState,
}

impl Pods {
    pub(super) fn get(&self, id: &WorkloadId) -> Option<&PodEntry> {
        self.by_id.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &WorkloadId> {
        self.by_id.keys()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &WorkloadId> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }

    /// Takes an object in, or out; returns what was there.
    pub(super) fn replace(
        &mut self,
        id: &WorkloadId,
        object: Option<&Arc<Pod>>,
    ) -> Option<PodEntry> {
        let old = self.by_id.remove(id);
        // Most changes of a pod leave its labels alone.
        let same_labels = match (&old, object) {
            (Some(old), Some(new)) => old.object.metadata.labels == new.metadata.labels,
            _ => false,
        };
        if let Some(old) = old.as_ref().filter(|_| !same_labels) {
            self.unfile(id, &old.object);
        }
        if let Some(object) = object {
            if !same_labels {
                self.file(id, object);
            }
            let workload = old.as_ref().and_then(|old| old.workload.clone());
            self.by_id.insert(id.clone(), PodEntry { object: Arc::clone(object), workload });
        }
        old
    }

    fn file(&mut self, id: &WorkloadId, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_str();
        if let Some(ids) = self.by_namespace.get_mut(namespace) {
            ids.insert(id.clone());
        } else {
            self.by_namespace.entry(namespace.into()).or_default().insert(id.clone());
        }
        for (key, value) in &pod.metadata.labels {
            let label = self.hash(namespace, key, value);
            self.by_label.entry(label).or_default().insert(id.clone());
        }
    }

    fn unfile(&mut self, id: &WorkloadId, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_str();
        if let Some(ids) = self.by_namespace.get_mut(namespace) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
        for (key, value) in &pod.metadata.labels {
            let label = self.hash(namespace, key, value);
            if let Some(ids) = self.by_label.get_mut(&label) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
    }

    fn hash(&self, namespace: &str, key: &str, value: &str) -> u64 {
        self.hasher.hash_one((namespace, key, value))
    }

    /// The pods of `namespace` that have all labels of `selector`.
    pub(super) fn selected<'a>(
        &'a self,
        namespace: &'a str,
        selector: &'a Labels,
    ) -> impl Iterator<Item = (&'a WorkloadId, &'a PodEntry)> {
        let rarest = selector
            .iter()
            .map(|(key, value)| self.by_label.get(&self.hash(namespace, key, value)))
            .min_by_key(|ids| ids.map_or(0, HashSet::len))
            .flatten();
        rarest.into_iter().flatten().filter_map(move |id| {
            let entry = self.by_id.get(id)?;
            let metadata = &entry.object.metadata;
            let matches = metadata.namespace == namespace
                && selector.iter().all(|(k, v)| metadata.labels.get(k).is_some_and(|l| l == v));
            matches.then_some((id, entry))
        })
    }

    /// Puts the compiled workload in place, and its claims on addresses. Returns the addresses
    /// whose owner may be another one now.
    pub(super) fn set_workload(
        &mut self,
        id: &WorkloadId,
        old: Option<&Workload>,
        new: Option<Arc<Workload>>,
    ) -> Vec<IpAddr> {
        let host_network = self.by_id.get(id).is_some_and(|entry| entry.object.spec.host_network);
        let mut touched = Vec::new();
        for ip in old.into_iter().flat_map(|old| &old.ips) {
            if let Some(claims) = self.by_ip.get_mut(ip) {
                claims.retain(|other| other != id);
                if claims.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
            touched.push(*ip);
        }
        if !host_network {
            for ip in new.iter().flat_map(|new| &new.ips) {
                self.by_ip.entry(*ip).or_default().push(id.clone());
                if !touched.contains(ip) {
                    touched.push(*ip);
                }
            }
        }
        if let Some(entry) = self.by_id.get_mut(id) {
            entry.workload = new;
        }
        touched
    }

    /// The pods that say that an address is their own.
    pub(super) fn claiming(&self, ip: &IpAddr) -> impl Iterator<Item = &PodEntry> {
        self.by_ip.get(ip).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// The workload at an address. Should several claim it (an old pod whose end has not been
    /// told yet), it is the one that is not going away, then the youngest.
    pub(super) fn at(&self, ip: &IpAddr) -> Option<&Arc<Workload>> {
        let entries = self.claiming(ip).filter(|entry| entry.workload.is_some());
        let owner = entries.min_by_key(|entry| {
            let metadata = &entry.object.metadata;
            (
                metadata.deletion_timestamp.is_some(),
                Reverse(metadata.creation_timestamp.as_deref().unwrap_or_default()),
                (metadata.namespace.as_str(), metadata.name.as_str()),
            )
        })?;
        owner.workload.as_ref()
    }
}
