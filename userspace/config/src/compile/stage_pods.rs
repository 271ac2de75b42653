//! Stages of a compilation: MeshConfig and pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::Pod;
use fairlead_types::WorkloadId;

use super::problem::Report;
use super::workload::PodContext;
use super::{Compiler, Dirty, OldPod, Origin, Unit, ingest, mesh, workload};
use crate::enrolment::REFUSED_ANNOTATION;
use crate::model::{LocalPod, Map};

impl Compiler {
    /// MeshConfig has changed: everything may depend on it.
    pub(super) fn stage_mesh(&mut self, dirty: &mut Dirty) {
        let (mesh, problems) =
            mesh::compile_reported(&self.mesh_config, &self.settings, &self.mesh);
        self.set_problems(Origin::Mesh, problems, dirty);
        if mesh == *self.mesh {
            return;
        }
        self.mesh = Arc::new(mesh);
        self.snapshot.mesh = Arc::clone(&self.mesh);
        self.changed = true;
        for id in self.pods.ids() {
            ingest::mark_pod(&self.pods, id, &mut dirty.pods);
        }
        self.mark_all_routing(dirty);
        dirty.authz = true;
        dirty.peer_authentication = true;
    }

    pub(super) fn mark_all_routing(&self, dirty: &mut Dirty) {
        dirty.clusters.extend(self.services.hosts().cloned());
        dirty.units.extend(self.services.hosts().cloned().map(Unit::Service));
        dirty.units.extend(self.virtual_services.patterns().cloned().map(Unit::VirtualHost));
    }

    pub(super) fn stage_pods(&mut self, dirty: &mut Dirty) {
        if dirty.pods.is_empty() && !dirty.clients {
            return;
        }
        for (id, old) in std::mem::take(&mut dirty.pods) {
            dirty.stats.pods += 1;
            self.compile_pod(&id, old, dirty);
        }
        self.refresh_clients(dirty);
    }

    /// Which clients there are: variants for single ones exist for those of local pods only.
    fn refresh_clients(&mut self, dirty: &mut Dirty) {
        let mut clients = BTreeSet::new();
        let mut chosen = Map::default();
        for local in self.snapshot.local.values().filter(|local| local.workload.enrolled) {
            let workload = &local.workload;
            let client = self.rules.client(&workload.namespace, &workload.labels);
            if client.is_chosen() {
                chosen.insert(workload.id.clone(), Arc::clone(client.name()));
            }
            clients.insert(client);
        }
        if chosen != self.snapshot.clients {
            self.snapshot.clients = chosen;
            self.changed = true;
        }
        if clients != self.local_clients {
            self.local_clients = clients;
            if self.rules.tells_clients_apart() || !self.virtual_services.is_empty() {
                self.mark_all_routing(dirty);
            }
        }
    }

    fn compile_pod(&mut self, id: &WorkloadId, old: Option<OldPod>, dirty: &mut Dirty) {
        let key = workload::key_of(id);
        let (old_object, old_workload) = old.map_or((None, None), |(o, w)| (Some(o), w));
        let object = self.pods.get(id).map(|entry| Arc::clone(&entry.object));
        let mut problems = Vec::new();
        let mut report = Report::new(&key, &mut problems);
        let compiled = object.as_ref().filter(|pod| !workload::is_over(pod)).and_then(|pod| {
            let namespace = self.namespaces.get(pod.metadata.namespace.as_str());
            let context = PodContext {
                node: &self.settings.node,
                mesh: &self.mesh,
                namespace_labels: namespace.map(|namespace| &namespace.metadata.labels),
            };
            workload::compile(pod, &context, &mut report)
        });
        let workload = compiled.map(|new| match &old_workload {
            Some(old) if **old == new => Arc::clone(old),
            _ => Arc::new(new),
        });
        let local = match (&object, &workload) {
            (Some(pod), Some(workload))
                if workload.node == self.settings.node && !workload.node.is_empty() =>
            {
                Some(workload::local(pod, workload, &mut report))
            }
            _ => None,
        };
        self.set_problems(Origin::Object(key), problems, dirty);
        let refused = object.as_ref().zip(local.as_ref()).and_then(|(pod, local)| {
            let reason = pod.metadata.annotations.get(REFUSED_ANNOTATION)?;
            local.workload.enrolled.then(|| Arc::from(reason.as_str()))
        });
        self.set_refused(id, refused);
        // Services that select it, by what it was and by what it is.
        for pod in old_object.iter().chain(&object) {
            self.mark_selecting(pod, dirty);
        }
        let touched = self.pods.set_workload(id, old_workload.as_deref(), workload);
        for ip in touched {
            // Whoever else says that the address is his may have won or lost it.
            for entry in self.pods.claiming(&ip) {
                self.mark_selecting(&entry.object, dirty);
            }
            self.refresh_address(ip);
            dirty.endpoints.extend(self.slices.users(&ip).cloned());
        }
        self.set_local(id, local, dirty);
    }

    fn mark_selecting(&self, pod: &Pod, dirty: &mut Dirty) {
        let metadata = &pod.metadata;
        let hosts = self.services.selecting(&metadata.namespace, &metadata.labels);
        dirty.endpoints.extend(hosts.cloned());
    }

    fn refresh_address(&mut self, ip: IpAddr) {
        let now = self.pods.at(&ip);
        let before = self.snapshot.workloads.get(&ip);
        match (before, now) {
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => {}
            (None, None) => {}
            (_, Some(now)) => {
                self.snapshot.workloads.insert(ip, Arc::clone(now));
                self.changed = true;
            }
            (Some(_), None) => {
                self.snapshot.workloads.remove(&ip);
                self.changed = true;
            }
        }
    }

    fn set_refused(&mut self, id: &WorkloadId, reason: Option<Arc<str>>) {
        if self.snapshot.refused.get(id) == reason.as_ref() {
            return;
        }
        self.changed = true;
        match reason {
            Some(reason) => self.snapshot.refused.insert(id.clone(), reason),
            None => self.snapshot.refused.remove(id),
        };
    }

    fn set_local(&mut self, id: &WorkloadId, local: Option<LocalPod>, dirty: &mut Dirty) {
        let before = self.snapshot.local.get(id);
        match local {
            Some(local) if before.is_some_and(|before| **before == local) => return,
            Some(local) => {
                self.snapshot.local.insert(id.clone(), Arc::new(local));
            }
            None if before.is_none() => return,
            None => {
                self.snapshot.local.remove(id);
            }
        }
        self.changed = true;
        dirty.inbound.insert(id.clone());
    }
}
