//! Stages of a compilation: definitions of services and the addresses that they claim.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::clusters::ClusterSpec;
use super::host::HostPattern;
use super::problem::Report;
use super::services::ServiceEntry;
use super::{Compiler, Dirty, Origin, Set, Unit};

impl Compiler {
    pub(super) fn stage_services(&mut self, dirty: &mut Dirty) {
        for (host, (key, object)) in std::mem::take(&mut dirty.services) {
            let mut problems = Vec::new();
            // One text for all who know the service.
            let known = self.slices.host(&host).or_else(|| self.services.host(&host));
            let host = known.cloned().unwrap_or(host);
            let compiled = object.as_ref().and_then(|object| {
                ServiceEntry::compile(object, &host, &key, &mut Report::new(&key, &mut problems))
            });
            self.set_problems(Origin::Object(key), problems, dirty);
            self.replace_service(&host, compiled, dirty);
        }
    }

    fn replace_service(
        &mut self,
        host: &Arc<str>,
        compiled: Option<ServiceEntry>,
        dirty: &mut Dirty,
    ) {
        let old = self.services.remove(host);
        let appeared_or_gone = old.is_some() != compiled.is_some();
        let mut addresses: BTreeSet<SocketAddr> = BTreeSet::new();
        match (old, compiled) {
            (None, None) => return,
            (Some(old), Some(new)) if old.same_definition(&new) => {
                self.services.insert(old);
                return;
            }
            (Some(old), None) => {
                addresses.extend(old.addresses());
                self.drop_service(host, old, dirty);
            }
            (old, Some(mut new)) => {
                if let Some(mut old) = old {
                    addresses.extend(old.addresses());
                    new.endpoints = new
                        .ports
                        .iter()
                        .map(|port| {
                            let before = old.ports.iter().position(|p| p.number == port.number);
                            before
                                .and_then(|at| old.endpoints.get_mut(at))
                                .map(std::mem::take)
                                .unwrap_or_default()
                        })
                        .collect();
                    new.pods = old.pods;
                    new.variants = old.variants;
                    if old.service == new.service {
                        new.service = old.service;
                    }
                }
                addresses.extend(new.addresses());
                self.claim(host, &addresses, Some(&new));
                self.services.insert(new);
                dirty.clusters.insert(Arc::clone(host));
                dirty.endpoints.insert(Arc::clone(host));
            }
        }
        dirty.units.insert(Unit::Service(Arc::clone(host)));
        if !self.services.contains(host) {
            self.claim(host, &addresses, None);
        }
        self.mark_dependents(host, dirty);
        let pattern = HostPattern::Exact(Arc::clone(host));
        if appeared_or_gone && self.virtual_services.has(&pattern) {
            dirty.units.insert(Unit::VirtualHost(pattern));
        }
    }

    pub(super) fn mark_dependents(&self, host: &Arc<str>, dirty: &mut Dirty) {
        if let Some(units) = self.dependents.get(host) {
            dirty.units.extend(units.iter().cloned());
        }
    }

    /// Notes which of `addresses` the service claims now.
    fn claim(
        &mut self,
        host: &Arc<str>,
        addresses: &BTreeSet<SocketAddr>,
        service: Option<&ServiceEntry>,
    ) {
        let wanted: Set<SocketAddr> =
            service.into_iter().flat_map(ServiceEntry::addresses).collect();
        for address in addresses {
            let claims = self.vip_claims.entry(*address).or_default();
            match (claims.binary_search(host), wanted.contains(address)) {
                (Err(at), true) => {
                    // Nearly all have one.
                    claims.reserve_exact(1);
                    claims.insert(at, Arc::clone(host));
                }
                (Ok(at), false) => {
                    claims.remove(at);
                }
                (Ok(_), true) | (Err(_), false) => {}
            }
            if claims.is_empty() {
                self.vip_claims.remove(address);
            }
            self.refresh_vip(*address);
        }
    }

    /// Puts the port of the service that owns an address into the snapshot.
    pub(super) fn refresh_vip(&mut self, address: SocketAddr) {
        let owner = self.vip_claims.get(&address).and_then(|claims| claims.first());
        let port = owner
            .and_then(|host| self.services.get(host))
            .and_then(|entry| {
                self.snapshot.service_port(&entry.key.namespace, &entry.key.name, address.port())
            })
            .cloned();
        let before = self.snapshot.vips.get(&address);
        match (before, port) {
            (Some(before), Some(port)) if Arc::ptr_eq(before, &port) => {}
            (None, None) => {}
            (_, Some(port)) => {
                self.snapshot.vips.insert(address, port);
                self.changed = true;
            }
            (Some(_), None) => {
                self.snapshot.vips.remove(&address);
                self.changed = true;
            }
        }
    }

    fn drop_service(&mut self, host: &Arc<str>, old: ServiceEntry, dirty: &mut Dirty) {
        self.changed = true;
        self.snapshot.services.remove(&old.key);
        for spec in old.variants.iter().flat_map(|variant| &variant.clusters) {
            self.drop_cluster(spec);
        }
        for pod in old.pods {
            if self.targets.set(&pod, host, Vec::new()) {
                dirty.targets.insert(pod);
            }
        }
    }

    pub(super) fn drop_cluster(&mut self, spec: &ClusterSpec) {
        self.snapshot.clusters.remove(&spec.id);
        self.changed = true;
    }
}
