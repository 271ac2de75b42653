//! EndpointSlices as the compiler keeps them: by service, and by the addresses in them.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::EndpointSlice;
use foldhash::fast::RandomState;

use super::host::service_host;

/// Stands for a service in the index of addresses.
type Number = u32;

/// The slices of one service, by name.
#[derive(Debug, Default)]
struct OfService {
    number: Number,
    slices: Vec<(Arc<str>, Arc<EndpointSlice>)>,
}

/// All EndpointSlices.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// The service that a slice (namespace, name) belongs to.
    owners: HashMap<(Arc<str>, Arc<str>), Number, RandomState>,
    by_host: HashMap<Arc<str>, OfService, RandomState>,
    /// The host of each service; `None`: the number is free.
    hosts: Vec<Option<Arc<str>>>,
    free: Vec<Number>,
    /// Which services have an endpoint at an address, by [`Slices::brief`]: a few bytes for each
    /// endpoint, which is what there is most of.
    users: BTreeSet<(u32, Number)>,
    hasher: RandomState,
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
        let old =
            self.owners.get(&key).and_then(|number| self.hosts.get(*number as usize)?.clone());
        if let Some(host) = old {
            if new.as_ref().is_none_or(|(new, _)| *new != host) {
                self.owners.remove(&key);
                self.replace(&host, name, None);
            }
            touched.push(host);
        }
        if let Some((host, slice)) = new {
            let number = self.replace(&host, name, Some(slice));
            self.owners.insert(key, number);
            if !touched.contains(&host) {
                touched.push(host);
            }
        }
        touched
    }

    /// Puts a slice of a service in the place of the one of that name.
    fn replace(
        &mut self,
        host: &Arc<str>,
        name: &Arc<str>,
        slice: Option<&Arc<EndpointSlice>>,
    ) -> Number {
        let mut of_service = self.by_host.remove(host).unwrap_or_else(|| self.enter(host));
        let before = self.briefs(&of_service);
        let slices = &mut of_service.slices;
        match (slices.binary_search_by(|(other, _)| other.cmp(name)), slice) {
            (Ok(at), Some(slice)) => slices[at].1 = Arc::clone(slice),
            (Ok(at), None) => {
                slices.remove(at);
            }
            (Err(at), Some(slice)) => {
                // Nearly every service has one.
                slices.reserve_exact(1);
                slices.insert(at, (Arc::clone(name), Arc::clone(slice)));
            }
            (Err(_), None) => {}
        }
        let (number, now) = (of_service.number, self.briefs(&of_service));
        for gone in before.iter().filter(|brief| now.binary_search(brief).is_err()) {
            self.users.remove(&(*gone, number));
        }
        for new in now.iter().filter(|brief| before.binary_search(brief).is_err()) {
            self.users.insert((*new, number));
        }
        if of_service.slices.is_empty() {
            if let Some(place) = self.hosts.get_mut(number as usize) {
                *place = None;
                self.free.push(number);
            }
        } else {
            self.by_host.insert(Arc::clone(host), of_service);
        }
        number
    }

    /// Gives a service its number.
    fn enter(&mut self, host: &Arc<str>) -> OfService {
        let number = self.free.pop().unwrap_or_else(|| {
            self.hosts.push(None);
            // Each has a slice of its own, of which there are fewer than that.
            Number::try_from(self.hosts.len() - 1).unwrap_or(Number::MAX)
        });
        if let Some(place) = self.hosts.get_mut(number as usize) {
            *place = Some(Arc::clone(host));
        }
        OfService { number, slices: Vec::new() }
    }

    /// The addresses of a service in short, in order, each once.
    fn briefs(&self, of_service: &OfService) -> Vec<u32> {
        let slices = of_service.slices.iter();
        let addresses = slices.flat_map(|(_, slice)| &slice.endpoints).flat_map(|e| e.addresses);
        let ips = addresses.filter_map(|address| address.ip());
        let mut briefs: Vec<u32> = ips.map(|ip| self.brief(ip)).collect();
        briefs.sort_unstable();
        briefs.dedup();
        briefs
    }

    /// An address in short. Two may be the same in short, which costs a service that is looked at
    /// in vain.
    #[expect(clippy::cast_possible_truncation, reason = "a hash is cut short")]
    fn brief(&self, ip: IpAddr) -> u32 {
        match ip.to_canonical() {
            IpAddr::V4(ip) => ip.to_bits(),
            IpAddr::V6(ip) => self.hasher.hash_one(ip) as u32,
        }
    }

    /// The slices of a service; `None` when it has none.
    pub(super) fn of(&self, host: &str) -> Option<impl Iterator<Item = &Arc<EndpointSlice>>> {
        self.by_host.get(host).map(|of_service| of_service.slices.iter().map(|(_, slice)| slice))
    }

    /// The services that have an endpoint at `ip`.
    pub(super) fn users(&self, ip: &IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let brief = self.brief(*ip);
        let users = self.users.range((brief, Number::MIN)..=(brief, Number::MAX));
        users.filter_map(|(_, number)| self.hosts.get(*number as usize)?.as_ref())
    }
}
