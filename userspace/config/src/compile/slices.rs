//! EndpointSlices as the compiler keeps them: by service, and by the addresses in them.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::core::EndpointSlice;
use foldhash::fast::RandomState;

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
    users: HashMap<u32, Number, RandomState>,
    /// Those beyond one of an address.
    more: BTreeSet<(u32, Number)>,
    hasher: RandomState,
}

impl Slices {
    /// Takes a slice in, or out; returns the hosts of the services that it concerns. `host` makes a
    /// service's host of namespace and name.
    pub(super) fn update(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        object: Option<&Arc<EndpointSlice>>,
        host: impl Fn(&str, &str) -> Arc<str>,
    ) -> Vec<Arc<str>> {
        let key = (Arc::clone(namespace), Arc::clone(name));
        let mut touched = Vec::new();
        let new = object.and_then(|slice| Some((host(namespace, slice.service_name()?), slice)));
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
        let known = self.by_host.remove_entry(host);
        let (host, mut of_service) = known.unwrap_or_else(|| (Arc::clone(host), self.enter(host)));
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
            self.leave(*gone, number);
        }
        for new in now.iter().filter(|brief| before.binary_search(brief).is_err()) {
            if *self.users.entry(*new).or_insert(number) != number {
                self.more.insert((*new, number));
            }
        }
        if of_service.slices.is_empty() {
            if let Some(place) = self.hosts.get_mut(number as usize) {
                *place = None;
                self.free.push(number);
            }
        } else {
            self.by_host.insert(host, of_service);
        }
        number
    }

    /// A service has no endpoint at an address any more.
    fn leave(&mut self, brief: u32, number: Number) {
        if self.users.get(&brief) != Some(&number) {
            self.more.remove(&(brief, number));
            return;
        }
        let another = self.more.range((brief, Number::MIN)..=(brief, Number::MAX)).next().copied();
        match another {
            Some(another) => {
                self.more.remove(&another);
                self.users.insert(brief, another.1);
            }
            None => {
                self.users.remove(&brief);
            }
        }
    }

    /// The host of a service that has slices, as it is kept here.
    pub(super) fn host(&self, host: &str) -> Option<&Arc<str>> {
        self.hosts.get(self.by_host.get(host)?.number as usize)?.as_ref()
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
        let more = self.more.range((brief, Number::MIN)..=(brief, Number::MAX));
        let all = self.users.get(&brief).into_iter().chain(more.map(|(_, number)| number));
        all.filter_map(|number| self.hosts.get(*number as usize)?.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: &str, ips: &[&str]) -> Arc<EndpointSlice> {
        let endpoints: Vec<String> =
            ips.iter().map(|ip| format!(r#"{{"addresses": ["{ip}"]}}"#)).collect();
        let json = format!(
            r#"{{"metadata": {{"labels": {{"kubernetes.io/service-name": "{service}"}}}}, "endpoints": [{}]}}"#,
            endpoints.join(",")
        );
        Arc::new(serde_json::from_str(&json).unwrap())
    }

    struct Bed(Slices);

    impl Bed {
        fn set(&mut self, name: &str, slice: Option<Arc<EndpointSlice>>) -> Vec<String> {
            let host = |namespace: &str, name: &str| format!("{name}.{namespace}").into();
            let touched = self.0.update(&"ns".into(), &name.into(), slice.as_ref(), host);
            touched.iter().map(ToString::to_string).collect()
        }

        fn users(&self, ip: &str) -> Vec<&str> {
            let ip = ip.parse().unwrap();
            let mut users: Vec<&str> = self.0.users(&ip).map(AsRef::as_ref).collect();
            users.sort_unstable();
            users
        }
    }

    #[test]
    fn services_are_found_by_the_addresses_in_their_slices() {
        let mut bed = Bed(Slices::default());
        assert_eq!(
            bed.set("a-1", Some(slice("a", &["10.0.0.1", "10.0.0.2", "fd00::1"]))),
            ["a.ns"]
        );
        bed.set("a-2", Some(slice("a", &["10.0.0.2", "10.0.0.3"])));
        bed.set("b-1", Some(slice("b", &["10.0.0.1", "::ffff:10.0.0.2"])));
        bed.set("c-1", Some(slice("c", &["10.0.0.1"])));
        assert_eq!(bed.users("10.0.0.1"), ["a.ns", "b.ns", "c.ns"]);
        assert_eq!(bed.users("10.0.0.2"), ["a.ns", "b.ns"]);
        assert_eq!((bed.users("fd00::1"), bed.users("10.0.0.9")), (vec!["a.ns"], vec![]));
        // What another slice of the service has stays.
        bed.set("a-1", Some(slice("a", &["10.0.0.9"])));
        assert_eq!(
            (bed.users("10.0.0.1"), bed.users("10.0.0.9")),
            (vec!["b.ns", "c.ns"], vec!["a.ns"])
        );
        assert_eq!(bed.users("10.0.0.2"), ["a.ns", "b.ns"]);
        assert!(bed.users("fd00::1").is_empty());
        // A slice changes its service.
        assert_eq!(bed.set("b-1", Some(slice("a", &["10.0.0.1"]))), ["b.ns", "a.ns"]);
        assert_eq!(bed.users("10.0.0.1"), ["a.ns", "c.ns"]);
        assert!(bed.0.of("b.ns").is_none() && bed.0.of("a.ns").unwrap().count() == 3);
        // Numbers of those that have gone are given again.
        bed.set("d-1", Some(slice("d", &["10.0.0.4"])));
        assert_eq!((bed.users("10.0.0.4"), bed.0.hosts.len()), (vec!["d.ns"], 3));
        for name in ["a-1", "a-2", "b-1", "c-1", "d-1"] {
            bed.set(name, None);
        }
        let Slices { owners, by_host, users, more, hosts, free, .. } = &bed.0;
        assert!(owners.is_empty() && by_host.is_empty() && users.is_empty() && more.is_empty());
        assert!(hosts.iter().all(Option::is_none) && free.len() == hosts.len());
        assert!(bed.set("a-1", None).is_empty());
    }
}
