//! Endpoints of a service: from its EndpointSlices if there are any, else from the pods that it
//! selects.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairlead_api::IntOrString;
use fairlead_api::core::{self as api, AddressType, EndpointSlice, Protocol};
use fairlead_types::WorkloadId;
use foldhash::fast::RandomState;

use super::locality::{Here, Sites, Spot};
use super::pods::{PodEntry, Pods};
use super::services::{PortSpec, ServiceEntry};
use super::slices::Slices;
use crate::model::{Endpoint, TargetPort, Workload};

/// What a service leads to.
pub(super) struct Resolved {
    /// By port, in the order of the service's ports; each ordered by address.
    pub(super) endpoints: Box<[Sites]>,
    /// Ports of pods, ready or not.
    pub(super) targets: HashMap<WorkloadId, Vec<TargetPort>, RandomState>,
}

/// One place that a service port leads to, before one address per workload is chosen.
struct Place {
    addr: SocketAddr,
    workload: Option<Arc<Workload>>,
    at: Spot,
}

/// Resolves the endpoints of `service`, reusing those that are the same as before.
pub(super) fn resolve(
    service: &ServiceEntry,
    pods: &Pods,
    slices: &Slices,
    here: &Here<'_>,
) -> Resolved {
    let places = service.ports.iter().map(|_| Vec::new()).collect();
    let mut found = Found { service, pods, here, places, targets: HashMap::default() };
    match slices.of(&service.service.host) {
        Some(slices) => slices.for_each(|slice| found.slice(slice)),
        None => {
            if let Some(selector) = &service.selector {
                for (id, pod) in pods.selected(&service.key.namespace, selector) {
                    found.pod(id, pod);
                }
            }
        }
    }
    let Found { places, mut targets, .. } = found;
    for ports in targets.values_mut() {
        ports.sort_by_key(|port| (port.number, port.service_port));
        ports.dedup();
    }
    let endpoints = places
        .into_iter()
        .enumerate()
        .map(|(port, places)| {
            let before = service.endpoints.get(port).map_or(&[][..], |sites| &sites.endpoints);
            settle(places, service.service.vips.first(), before)
        })
        .collect();
    Resolved { endpoints, targets }
}

/// What has been found of a service.
struct Found<'a> {
    service: &'a ServiceEntry,
    pods: &'a Pods,
    here: &'a Here<'a>,
    /// By port.
    places: Vec<Vec<Place>>,
    targets: HashMap<WorkloadId, Vec<TargetPort>, RandomState>,
}

impl Found<'_> {
    fn target(&mut self, workload: &WorkloadId, port: &PortSpec, number: u16) {
        let target = TargetPort {
            number,
            protocol: port.protocol,
            service: Arc::clone(&self.service.service),
            service_port: port.number,
        };
        self.targets.entry(workload.clone()).or_default().push(target);
    }

    fn pod(&mut self, id: &WorkloadId, pod: &PodEntry) {
        let Some(workload) = &pod.workload else { return };
        let eligible = pod.is_eligible(self.service.publish_not_ready);
        let at = self.here.spot(&workload.node, "", []);
        let pods = self.pods;
        for (index, port) in self.service.ports.iter().enumerate() {
            let number = match &port.target {
                IntOrString::Int(number) => Some(*number),
                IntOrString::String(name) => pod.named_port(name),
            };
            let Some(number) = number else { continue };
            self.target(id, port, number);
            if eligible {
                let own = |ip: &&IpAddr| {
                    pod.object.spec.host_network
                        || pods.at(ip).is_some_and(|owner| Arc::ptr_eq(owner, workload))
                };
                self.places[index].extend(workload.ips.iter().filter(own).map(|ip| Place {
                    addr: SocketAddr::new(*ip, number),
                    workload: Some(Arc::clone(workload)),
                    at,
                }));
            }
        }
    }

    fn slice(&mut self, slice: &EndpointSlice) {
        if slice.address_type == AddressType::Fqdn {
            return;
        }
        for (index, port) in self.service.ports.iter().enumerate() {
            let name = port.name.as_deref().unwrap_or_default();
            let number = slice
                .ports
                .iter()
                .find(|p| p.protocol == Protocol::Tcp && p.name == name)
                .and_then(|p| p.port);
            let Some(number) = number else { continue };
            for endpoint in &slice.endpoints {
                self.endpoint(endpoint, (index, port), number);
            }
        }
    }

    fn endpoint(
        &mut self,
        endpoint: api::Endpoint<'_>,
        (index, port): (usize, &PortSpec),
        number: u16,
    ) {
        let conditions = endpoint.conditions;
        let eligible = conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false);
        let pods = self.pods;
        // Pods on the host's network share an address, so the reference comes first.
        let reference = endpoint.target_ref.filter(|r| r.kind == "Pod");
        let referred = reference.and_then(|r| {
            let namespace = match r.namespace {
                "" => &self.service.key.namespace,
                namespace => namespace,
            };
            pods.get(&WorkloadId::new(namespace, r.name))?.workload.as_ref()
        });
        let ips = endpoint.addresses.filter_map(|address| address.ip());
        for ip in ips.map(|ip| ip.to_canonical()) {
            let named = referred.filter(|w| w.ips.contains(&ip));
            let workload = named.or_else(|| pods.at(&ip)).cloned();
            // Slices and Pods come by ways of their own. A pod of which nothing is known yet, or
            // whose address was another one's a moment ago, may be of the mesh: whoever took it
            // for one outside would speak with it in plaintext.
            let unknown = reference.is_some()
                && named.is_none()
                && workload.as_ref().is_none_or(|w| !w.enrolled);
            if unknown {
                continue;
            }
            if let Some(workload) = &workload {
                self.target(&workload.id, port, number);
            }
            if eligible {
                let node = match endpoint.node_name {
                    "" => workload.as_ref().map(|w| &*w.node).unwrap_or_default(),
                    node => node,
                };
                let at = self.here.spot(node, endpoint.zone, endpoint.for_zones);
                self.places[index].push(Place { addr: SocketAddr::new(ip, number), workload, at });
            }
        }
    }
}

/// One endpoint per workload (a dual-stack pod is one pod, and a retry elsewhere must not reach
/// it again): at the address of the family that the service prefers, if it has one.
fn settle(mut places: Vec<Place>, preferred: Option<&IpAddr>, before: &[Arc<Endpoint>]) -> Sites {
    // Should two pods have one address and port all the same, the first by name has it.
    places.sort_by(|a, b| {
        let order = |place: &Place| (place.addr, place.workload.is_none());
        let name = |place: &Place| place.workload.as_ref().map(|w| w.id.clone());
        order(a).cmp(&order(b)).then_with(|| name(a).cmp(&name(b)))
    });
    places.dedup_by_key(|place| place.addr);
    let fits = |addr: &SocketAddr| preferred.is_none_or(|ip| ip.is_ipv4() == addr.is_ipv4());
    let mut chosen: BTreeMap<SocketAddr, (Option<Arc<Workload>>, Spot)> = BTreeMap::new();
    let mut of_workload: HashMap<WorkloadId, SocketAddr, RandomState> = HashMap::default();
    for place in places {
        if let Some(workload) = &place.workload {
            if let Some(other) = of_workload.get(&workload.id) {
                let better = |addr: &SocketAddr| (!fits(addr), *addr);
                if better(other) <= better(&place.addr) {
                    continue;
                }
                chosen.remove(other);
            }
            of_workload.insert(workload.id.clone(), place.addr);
        }
        chosen.insert(place.addr, (place.workload, place.at));
    }
    chosen.into_iter().map(|(addr, (workload, at))| (reuse(addr, workload, before), at)).collect()
}

fn reuse(
    addr: SocketAddr,
    workload: Option<Arc<Workload>>,
    before: &[Arc<Endpoint>],
) -> Arc<Endpoint> {
    let old = before.binary_search_by_key(&addr, |endpoint| endpoint.addr());
    let old = old.ok().map(|at| &before[at]);
    match old {
        Some(old) if same_workload(old.workload.as_ref(), workload.as_ref()) => Arc::clone(old),
        Some(old) => Arc::new(Endpoint::in_place_of(old, workload)),
        None => Arc::new(Endpoint::new(addr, workload)),
    }
}

fn same_workload(a: Option<&Arc<Workload>>, b: Option<&Arc<Workload>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}
