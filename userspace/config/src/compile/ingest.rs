//! Taking objects in: each kind goes to its index and marks what may depend on it.

use std::sync::Arc;

use fairlead_api::core::{Namespace, Pod};
use fairlead_api::{Kind, ObjectKey, Resource};
use fairlead_types::WorkloadId;

use super::host::{HostPattern, service_host};
use super::problem::Report;
use super::{Compiler, Dirty, Exports, HashedMap, OldPod, Origin, Unit, destination_rule};
use crate::source::{MESH_CONFIG_MAP, mesh_config};

impl Compiler {
    pub(super) fn ingest(&mut self, key: &ObjectKey, object: Option<&Resource>, dirty: &mut Dirty) {
        let domain = Arc::clone(&self.settings.cluster_domain);
        match (key.kind, object) {
            (Kind::Namespace, Some(Resource::Namespace(namespace))) => {
                self.ingest_namespace(key, Some(namespace), dirty);
            }
            (Kind::Namespace, None) => self.ingest_namespace(key, None, dirty),
            (Kind::Pod, Some(Resource::Pod(pod))) => self.ingest_pod(key, Some(pod), dirty),
            (Kind::Pod, None) => self.ingest_pod(key, None, dirty),
            (Kind::Service, object) => {
                let service = match object {
                    Some(Resource::Service(service)) => Some(Arc::clone(service)),
                    _ => None,
                };
                let host = service_host(&key.namespace, &key.name, &domain);
                dirty.services.insert(host, (key.clone(), service));
            }
            (Kind::Node, object) => {
                let node = match object {
                    Some(Resource::Node(node)) => Some(&**node),
                    _ => None,
                };
                if self.nodes.update(&key.name, node) {
                    dirty.endpoints.extend(self.services.hosts().cloned());
                }
            }
            (Kind::EndpointSlice, object) => {
                let slice = match object {
                    Some(Resource::EndpointSlice(slice)) => Some(slice),
                    _ => None,
                };
                // One text for all who know the service.
                let known = |namespace: &str, name: &str| {
                    let host = service_host(namespace, name, &domain);
                    self.services.host(&host).cloned().unwrap_or(host)
                };
                let hosts = self.slices.update(&key.namespace, &key.name, slice, known);
                dirty.endpoints.extend(hosts);
            }
            (Kind::VirtualService, object) => {
                let virtual_service = match object {
                    Some(Resource::VirtualService(object)) => Some(object),
                    _ => None,
                };
                let export = &self.exports.virtual_services;
                let touched = self.virtual_services.update(key, virtual_service, &domain, export);
                for pattern in touched {
                    self.mark_routes(&pattern, dirty);
                    dirty.conflicts.insert(pattern);
                }
            }
            (Kind::DestinationRule, object) => {
                let rule = match object {
                    Some(Resource::DestinationRule(object)) => Some(object),
                    _ => None,
                };
                let mut problems = Vec::new();
                if let Some(rule) = rule {
                    destination_rule::review(rule, &mut Report::new(key, &mut problems));
                }
                self.set_problems(Origin::Object(key.clone()), problems, dirty);
                dirty.clients |= self.rules.choose_workloads();
                let export = &self.exports.destination_rules;
                let touched = self.rules.update(key, rule, &domain, export);
                dirty.clients |= self.rules.choose_workloads();
                for pattern in touched {
                    match pattern {
                        HostPattern::Exact(host) => {
                            dirty.clusters.insert(host);
                        }
                        HostPattern::Wildcard(_) => {
                            let hosts = self.services.hosts().filter(|host| pattern.matches(host));
                            dirty.clusters.extend(hosts.cloned());
                        }
                    }
                }
            }
            (Kind::AuthorizationPolicy, object) => {
                if let Some(Resource::AuthorizationPolicy(policy)) = object {
                    self.security.authorization.insert(key.clone(), Arc::clone(policy));
                } else {
                    self.security.authorization.remove(key);
                }
                dirty.authz = true;
            }
            (Kind::PeerAuthentication, object) => {
                if let Some(Resource::PeerAuthentication(policy)) = object {
                    self.security.peer.insert(key.clone(), Arc::clone(policy));
                } else {
                    self.security.peer.remove(key);
                }
                dirty.peer_authentication = true;
            }
            (Kind::ConfigMap, object) => self.ingest_config_map(key, object, dirty),
            // Nothing is compiled from the rest yet; validation says so where a person would
            // expect an effect.
            _ => {}
        }
    }

    fn ingest_namespace(
        &mut self,
        key: &ObjectKey,
        object: Option<&Arc<Namespace>>,
        dirty: &mut Dirty,
    ) {
        let old = match object {
            Some(namespace) => self.namespaces.insert(Arc::clone(&key.name), Arc::clone(namespace)),
            None => self.namespaces.remove(&key.name),
        };
        let same_labels = match (&old, object) {
            (Some(old), Some(new)) => old.metadata.labels == new.metadata.labels,
            (None, None) => true,
            _ => false,
        };
        if !same_labels {
            for id in self.pods.in_namespace(&key.name) {
                mark_pod(&self.pods, id, &mut dirty.pods);
            }
        }
    }

    fn ingest_pod(&mut self, key: &ObjectKey, object: Option<&Arc<Pod>>, dirty: &mut Dirty) {
        let id = WorkloadId::new(&key.namespace, &key.name);
        let old = self.pods.replace(&id, object);
        dirty.pods.entry(id).or_insert_with(|| old.map(|old| (old.object, old.workload)));
    }

    fn ingest_config_map(&mut self, key: &ObjectKey, object: Option<&Resource>, dirty: &mut Dirty) {
        // MeshConfig may name another root namespace for policies; it is itself read from the
        // one that this node was told, or there would be two answers to the question.
        if *key.namespace != *self.settings.mesh.root_namespace || &*key.name != MESH_CONFIG_MAP {
            return;
        }
        let config = match object {
            Some(Resource::ConfigMap(map)) => mesh_config(map),
            _ => None,
        };
        let config = config.unwrap_or_else(|| self.settings.mesh.clone());
        if config != self.mesh_config {
            self.mesh_config = config;
            dirty.mesh = true;
        }
    }

    /// Takes over what MeshConfig says of objects that say nothing of `exportTo`.
    pub(super) fn stage_exports(&mut self, dirty: &mut Dirty) {
        let exports = Exports::new(&self.mesh_config);
        if exports == self.exports {
            return;
        }
        self.exports = exports;
        let domain = Arc::clone(&self.settings.cluster_domain);
        let export = &self.exports.virtual_services;
        for (key, object) in self.virtual_services.unexported() {
            let touched = self.virtual_services.update(&key, Some(&object), &domain, export);
            dirty.conflicts.extend(touched);
        }
        let export = &self.exports.destination_rules;
        for (key, object) in self.rules.unexported() {
            self.rules.update(&key, Some(&object), &domain, export);
        }
        dirty.clients |= self.rules.choose_workloads();
        self.mark_all_routing(dirty);
    }

    /// Marks everything whose routes a host pattern concerns.
    fn mark_routes(&self, pattern: &HostPattern, dirty: &mut Dirty) {
        match pattern {
            HostPattern::Exact(host) => {
                dirty.units.insert(Unit::Service(Arc::clone(host)));
            }
            HostPattern::Wildcard(_) => {
                let hosts = self.services.hosts().filter(|host| pattern.matches(host));
                dirty.units.extend(hosts.cloned().map(Unit::Service));
                let narrower =
                    self.virtual_services.patterns().filter(|other| pattern.covers(other));
                dirty.units.extend(narrower.cloned().map(Unit::VirtualHost));
            }
        }
        dirty.units.insert(Unit::VirtualHost(pattern.clone()));
    }
}

/// Marks a pod whose object is the same, but not what it is compiled with.
pub(super) fn mark_pod(
    pods: &super::pods::Pods,
    id: &WorkloadId,
    dirty: &mut HashedMap<WorkloadId, Option<OldPod>>,
) {
    if let Some(entry) = pods.get(id) {
        dirty
            .entry(id.clone())
            .or_insert_with(|| Some((Arc::clone(&entry.object), entry.workload.clone())));
    }
}
