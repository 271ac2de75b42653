//! EndpointSlices as the compiler keeps them: by service, and by the addresses in them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::EndpointSlice;
use foldhash::fast::RandomState;

use super::host::service_host;

/// The slices of one service.
#[derive(Debug, Default)]
struct OfService {
    slices: BTreeMap<Arc<str>, Arc<EndpointSlice>>,
    ips: BTreeSet<IpAddr>,
}

/// All EndpointSlices.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// The host of the service that a slice (namespace, name) belongs to.
    owners: HashMap<(Arc<str>, Arc<str>), Arc<str>, RandomState>,
    by_host: HashMap<Arc<str>, OfService, RandomState>,
    users: HashMap<IpAddr, HashSet<Arc<str>, RandomState>, RandomState>,
}

impl Slices {
    /// Takes a slice in, or out; returns the hosts of the services that it concerns.
    pub(super) fn update(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        object: Option<&Arc<EndpointSlice>>,
        domain: &str,
    ) -> Vec<Arc<str>> {
        let key = (Arc::clone(namespace), Arc::clone(name));
        let mut touched = Vec::new();
        let new = object.and_then(|slice| {
            Some((service_host(namespace, slice.service_name()?, domain), slice))
        });
        if let Some(host) = self.owners.remove(&key) {
            if let Some(of_service) = self.by_host.get_mut(&host) {
                of_service.slices.remove(name);
            }
            if new.as_ref().is_none_or(|(new, _)| *new != host) {
                self.reindex(&host);
            }
            touched.push(host);
        }
        if let Some((host, slice)) = new {
            let of_service = self.by_host.entry(Arc::clone(&host)).or_default();
            of_service.slices.insert(Arc::clone(name), Arc::clone(slice));
            self.owners.insert(key, Arc::clone(&host));
            self.reindex(&host);
            if !touched.contains(&host) {
                touched.push(host);
            }
        }
        touched
    }

    fn reindex(&mut self, host: &Arc<str>) {
        let Some(of_service) = self.by_host.get_mut(host) else { return };
        let ips: BTreeSet<IpAddr> = of_service
            .slices
            .values()
            .flat_map(|slice| &slice.endpoints)
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(|ip| ip.to_canonical())
            .collect();
        for gone in of_service.ips.difference(&ips) {
            if let Some(users) = self.users.get_mut(gone) {
                users.remove(host);
                if users.is_empty() {
                    self.users.remove(gone);
                }
            }
        }
        for new in ips.difference(&of_service.ips) {
            self.users.entry(*new).or_default().insert(Arc::clone(host));
        }
        of_service.ips = ips;
        if of_service.slices.is_empty() {
            self.by_host.remove(host);
        }
    }

    /// The slices of a service; `None` when it has none.
    pub(super) fn of(&self, host: &str) -> Option<impl Iterator<Item = &Arc<EndpointSlice>>> {
        self.by_host.get(host).map(|of_service| of_service.slices.values())
    }

    /// The services that have an endpoint at `ip`.
    pub(super) fn users(&self, ip: &IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.users.get(ip).into_iter().flatten()
    }
}
