//! Stages of a compilation: clusters, endpoints, routes, targets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::client::Client;
use super::clusters::{ClusterLookup, ClusterSpec, Variant};
use super::destination_rule::{Effective, selects};
use super::host::HostPattern;
use super::locality::{Here, Sites, choose};
use super::tables::{Tables, conflicts};
use super::{Compiler, Dirty, Origin, Unit, endpoints};
use crate::model::{Cluster, ServicePort};

impl Compiler {
    pub(super) fn stage_clusters(&mut self, dirty: &mut Dirty) {
        for host in std::mem::take(&mut dirty.clusters) {
            let Some(variants) = self.compile_variants(&host) else { continue };
            let Some(entry) = self.services.get_mut(&host) else { continue };
            if entry.variants == variants {
                continue;
            }
            let old = std::mem::replace(&mut entry.variants, variants.clone());
            let ids = |variants: &[Variant]| -> BTreeSet<_> {
                variants.iter().flat_map(|v| v.clusters.iter().map(|c| c.id)).collect()
            };
            let (before, now) = (ids(&old), ids(&variants));
            let all = old.iter().flat_map(|variant| &variant.clusters);
            for gone in all.filter(|spec| !now.contains(&spec.id)) {
                self.drop_cluster(gone);
            }
            if before != now {
                dirty.units.insert(Unit::Service(Arc::clone(&host)));
                self.mark_dependents(&host, dirty);
            }
            dirty.endpoints.insert(host);
        }
    }

    fn compile_variants(&mut self, host: &Arc<str>) -> Option<Vec<Variant>> {
        let entry = self.services.get(host)?;
        let namespace = &entry.key.namespace;
        let effective =
            |client| self.rules.effective(host, namespace, client, &self.mesh.root_namespace);
        let common = effective(None);
        let mut all: Vec<(Option<Client>, Effective)> = Vec::new();
        if self.rules.tells_clients_apart() {
            let special = self.rules.special_clients(host, namespace);
            for client in self.local_clients.iter().filter(|c| special.contains(c.namespace())) {
                let own = effective(Some(client));
                if own != common {
                    all.push((Some(client.clone()), own));
                }
            }
        }
        all.insert(0, (None, common));
        let mut variants = Vec::with_capacity(all.len());
        for (client, rules) in all {
            let before = entry.variants.iter().find(|variant| variant.client == client);
            let mut clusters = Vec::new();
            let subsets = rules.subsets();
            for port in &entry.ports {
                let wanted = std::iter::once((None, None)).chain(
                    subsets.iter().map(|(name, subset)| (Some(Arc::from(*name)), Some(*subset))),
                );
                for (name, subset) in wanted {
                    let policy = rules.policy(port.number, subset, &self.mesh);
                    let before = before.and_then(|v| v.find(port.number, name.as_deref()));
                    let id = before.map_or_else(|| self.ids.give(), |before| before.id);
                    clusters.push(ClusterSpec { id, port: port.number, subset: name, policy });
                }
            }
            variants.push(Variant { client, clusters });
        }
        Some(variants)
    }

    pub(super) fn stage_endpoints(&mut self, dirty: &mut Dirty) {
        for host in std::mem::take(&mut dirty.endpoints) {
            let Some(entry) = self.services.get(&host) else { continue };
            dirty.stats.services += 1;
            let here = Here::new(&self.settings.node, &self.nodes);
            let resolved = endpoints::resolve(entry, &self.pods, &self.slices, &here);
            let Some(entry) = self.services.get_mut(&host) else { continue };
            entry.endpoints = resolved.endpoints;
            let pods = resolved.targets.keys().cloned().collect();
            let before = std::mem::replace(&mut entry.pods, pods);
            for pod in before.iter().filter(|pod| !resolved.targets.contains_key(*pod)) {
                if self.targets.set(pod, &host, Vec::new()) {
                    dirty.targets.insert(pod.clone());
                }
            }
            for (pod, ports) in resolved.targets {
                if self.targets.set(&pod, &host, ports) {
                    dirty.targets.insert(pod);
                }
            }
            self.build_clusters(&host, dirty);
        }
    }

    fn build_clusters(&mut self, host: &Arc<str>, dirty: &mut Dirty) {
        let Some(entry) = self.services.get(host) else { return };
        for variant in &entry.variants {
            for spec in &variant.clusters {
                let Some(at) = entry.ports.iter().position(|p| p.number == spec.port) else {
                    continue;
                };
                let sites = entry.endpoints.get(at);
                let selected = sites.into_iter().flat_map(Sites::iter).filter(|site| {
                    let workload = site.endpoint.workload.as_ref();
                    selects(&spec.policy.labels, workload.map(|w| &*w.labels))
                });
                let (endpoints, locality) = choose(selected, entry.preference);
                let before = self.snapshot.clusters.get(&spec.id);
                let protocol = entry.ports[at].protocol;
                if before.is_some_and(|before| {
                    before.protocol == protocol
                        && before.policy == spec.policy
                        && before.service == entry.service
                        && before.locality == locality
                        && before.endpoints.len() == endpoints.len()
                        && before.endpoints.iter().zip(&endpoints).all(|(a, b)| Arc::ptr_eq(a, b))
                }) {
                    continue;
                }
                let same = |sites: &&Sites| {
                    sites.endpoints.len() == endpoints.len()
                        && sites.endpoints.iter().zip(&endpoints).all(|(a, b)| Arc::ptr_eq(a, b))
                };
                let endpoints = match sites.filter(same) {
                    Some(sites) => Arc::clone(&sites.endpoints),
                    None => endpoints.into_iter().cloned().collect(),
                };
                let subset = spec.subset.as_deref().unwrap_or_default();
                let cluster = Cluster {
                    id: spec.id,
                    name: match before {
                        Some(before) => Arc::clone(&before.name),
                        None => format!("outbound|{}|{subset}|{host}", spec.port).into(),
                    },
                    service: Arc::clone(&entry.service),
                    port: spec.port,
                    protocol,
                    subset: spec.subset.clone(),
                    client: variant.client.as_ref().map(|client| Arc::clone(client.name())),
                    policy: spec.policy.clone(),
                    endpoints,
                    locality,
                    state: before.map_or_else(Default::default, |b| Arc::clone(&b.state)),
                };
                dirty.stats.clusters += 1;
                self.snapshot.clusters.insert(spec.id, Arc::new(cluster));
                self.changed = true;
            }
        }
    }

    pub(super) fn stage_routes(&mut self, dirty: &mut Dirty) {
        for unit in std::mem::take(&mut dirty.units) {
            dirty.stats.routes += 1;
            match &unit {
                Unit::Service(host) => self.compile_service_routes(&unit, host, dirty),
                Unit::VirtualHost(pattern) => self.compile_virtual_host(&unit, pattern, dirty),
            }
        }
        for pattern in std::mem::take(&mut dirty.conflicts) {
            let problems = conflicts(&self.virtual_services, &pattern, &self.mesh.cluster_domain);
            self.set_problems(Origin::Conflict(pattern), problems, dirty);
        }
    }

    fn tables(&self) -> Tables<'_> {
        Tables {
            mesh: &self.mesh,
            virtual_services: &self.virtual_services,
            rules: &self.rules,
            clusters: ClusterLookup { services: &self.services, domain: &self.mesh.cluster_domain },
            local_clients: &self.local_clients,
        }
    }

    fn compile_service_routes(&mut self, unit: &Unit, host: &Arc<str>, dirty: &mut Dirty) {
        let Some(entry) = self.services.get(host) else {
            self.set_named(unit, BTreeSet::new());
            self.set_problems(Origin::Unit(unit.clone()), Vec::new(), dirty);
            return;
        };
        let compiled = self.tables().service(entry);
        let key = entry.key.clone();
        let addresses: Vec<SocketAddr> = entry.addresses().collect();
        let before = self.snapshot.services.get(&key);
        let reuse = |port: ServicePort| -> Arc<ServicePort> {
            let old = before.into_iter().flat_map(|ports| ports.iter());
            match old.into_iter().find(|old| ***old == port) {
                Some(old) => Arc::clone(old),
                None => Arc::new(port),
            }
        };
        let ports: Arc<[Arc<ServicePort>]> = compiled.value.into_iter().map(reuse).collect();
        let same = before.is_some_and(|before| {
            before.len() == ports.len()
                && before.iter().zip(ports.iter()).all(|(a, b)| Arc::ptr_eq(a, b))
        });
        if !same {
            self.snapshot.services.insert(key, ports);
            self.changed = true;
        }
        for address in addresses {
            self.refresh_vip(address);
        }
        self.set_named(unit, compiled.hosts);
        self.set_problems(Origin::Unit(unit.clone()), compiled.problems, dirty);
    }

    fn compile_virtual_host(&mut self, unit: &Unit, pattern: &HostPattern, dirty: &mut Dirty) {
        let is_service = match pattern {
            HostPattern::Exact(host) => self.services.contains(host),
            HostPattern::Wildcard(_) => false,
        };
        let compiled = (!is_service && self.virtual_services.has(pattern))
            .then(|| self.tables().virtual_host(pattern));
        let (value, hosts, problems) = match compiled {
            Some(compiled) => (compiled.value, compiled.hosts, compiled.problems),
            None => (None, BTreeSet::new(), Vec::new()),
        };
        let (index, name) = match pattern {
            HostPattern::Exact(host) => (&mut self.snapshot.virtual_hosts.exact, host),
            HostPattern::Wildcard(suffix) => (&mut self.snapshot.virtual_hosts.wildcard, suffix),
        };
        match value {
            Some(value) if index.get(name).is_some_and(|before| **before == value) => {}
            Some(value) => {
                index.insert(Arc::clone(name), Arc::new(value));
                self.changed = true;
            }
            None => self.changed |= index.remove(name).is_some(),
        }
        self.set_named(unit, hosts);
        self.set_problems(Origin::Unit(unit.clone()), problems, dirty);
    }

    /// Notes which hosts the tables of a unit name.
    fn set_named(&mut self, unit: &Unit, hosts: BTreeSet<Arc<str>>) {
        let before = self.named.remove(unit).unwrap_or_default();
        for gone in before.difference(&hosts) {
            if let Some(units) = self.dependents.get_mut(gone) {
                units.remove(unit);
                if units.is_empty() {
                    self.dependents.remove(gone);
                }
            }
        }
        for new in hosts.difference(&before) {
            self.dependents.entry(Arc::clone(new)).or_default().insert(unit.clone());
        }
        if !hosts.is_empty() {
            self.named.insert(unit.clone(), hosts);
        }
    }

    pub(super) fn stage_targets(&mut self, dirty: &mut Dirty) {
        for pod in std::mem::take(&mut dirty.targets) {
            match self.targets.of(&pod) {
                Some(ports) => {
                    self.snapshot.targets.insert(pod.clone(), ports);
                }
                None => {
                    self.snapshot.targets.remove(&pod);
                }
            }
            self.changed = true;
            if self.snapshot.local.contains_key(&pod) {
                dirty.inbound.insert(pod);
            }
        }
    }
}
