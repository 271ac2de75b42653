//! Endpoints of a service: from its EndpointSlices if there are any, else from the pods that it
//! selects.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairlead_api::IntOrString;
use fairlead_api::core::{AddressType, EndpointSlice, Protocol};
use fairlead_types::WorkloadId;
use foldhash::fast::RandomState;

use super::pods::{PodEntry, Pods};
use super::services::{PortSpec, ServiceEntry};
use super::slices::Slices;
use crate::model::{Endpoint, TargetPort, Workload};

/// What a service leads to.
pub(super) struct Resolved {
    /// By port, in the order of the service's ports; each ordered by address.
    pub(super) endpoints: Vec<Vec<Arc<Endpoint>>>,
    /// Ports of pods, ready or not.
    pub(super) targets: HashMap<WorkloadId, Vec<TargetPort>, RandomState>,
}

/// One place that a service port leads to, before one address per workload is chosen.
struct Place {
    addr: SocketAddr,
    workload: Option<Arc<Workload>>,
}

/// Resolves the endpoints of `service`, reusing those that are the same as before.
pub(super) fn resolve(service: &ServiceEntry, pods: &Pods, slices: &Slices) -> Resolved {
    let mut places: Vec<Vec<Place>> = service.ports.iter().map(|_| Vec::new()).collect();
    let mut targets: HashMap<WorkloadId, Vec<TargetPort>, RandomState> = HashMap::default();
    match slices.of(&service.service.host) {
        Some(slices) => {
            for slice in slices {
                from_slice(slice, service, pods, &mut places, &mut targets);
            }
        }
        None => {
            if let Some(selector) = &service.selector {
                for (id, pod) in pods.selected(&service.key.namespace, selector) {
                    from_pod(id, pod, pods, service, &mut places, &mut targets);
                }
            }
        }
    }
    for ports in targets.values_mut() {
        ports.sort_by_key(|port| (port.number, port.service_port));
        ports.dedup();
    }
    let endpoints = places
        .into_iter()
        .enumerate()
        .map(|(port, places)| {
            let before = service.endpoints.get(port).map_or(&[][..], Vec::as_slice);
            settle(places, service.service.vips.first(), before)
        })
        .collect();
    Resolved { endpoints, targets }
}

fn target(service: &ServiceEntry, port: &PortSpec, number: u16) -> TargetPort {
    TargetPort {
        number,
        protocol: port.protocol,
        service: Arc::clone(&service.service),
        service_port: port.number,
    }
}

fn from_pod(
    id: &WorkloadId,
    pod: &PodEntry,
    pods: &Pods,
    service: &ServiceEntry,
    places: &mut [Vec<Place>],
    targets: &mut HashMap<WorkloadId, Vec<TargetPort>, RandomState>,
) {
    let Some(workload) = &pod.workload else { return };
    let eligible = pod.is_eligible(service.publish_not_ready);
    for (port, places) in service.ports.iter().zip(places) {
        let number = match &port.target {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => pod.named_port(name),
        };
        let Some(number) = number else { continue };
        targets.entry(id.clone()).or_default().push(target(service, port, number));
        if eligible {
            let own = |ip: &&IpAddr| {
                pod.object.spec.host_network
                    || pods.at(ip).is_some_and(|owner| Arc::ptr_eq(owner, workload))
            };
            places.extend(workload.ips.iter().filter(own).map(|ip| Place {
                addr: SocketAddr::new(*ip, number),
                workload: Some(Arc::clone(workload)),
            }));
        }
    }
}

fn from_slice(
    slice: &EndpointSlice,
    service: &ServiceEntry,
    pods: &Pods,
    places: &mut [Vec<Place>],
    targets: &mut HashMap<WorkloadId, Vec<TargetPort>, RandomState>,
) {
    if slice.address_type == AddressType::Fqdn {
        return;
    }
    for (port, places) in service.ports.iter().zip(places) {
        let name = port.name.as_deref().unwrap_or_default();
        let number = slice
            .ports
            .iter()
            .find(|p| p.protocol == Protocol::Tcp && p.name == name)
            .and_then(|p| p.port);
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions;
            let eligible =
                conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false);
            // Pods on the host's network share an address, so the reference comes first.
            let referred = endpoint.target_ref.as_ref().filter(|r| r.kind == "Pod").and_then(|r| {
                let namespace = if r.namespace.is_empty() {
                    &service.key.namespace
                } else {
                    r.namespace.as_str()
                };
                pods.get(&WorkloadId::new(namespace, &r.name))?.workload.as_ref()
            });
            let ips = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            for ip in ips.map(|ip| ip.to_canonical()) {
                let workload =
                    referred.filter(|w| w.ips.contains(&ip)).or_else(|| pods.at(&ip)).cloned();
                if let Some(workload) = &workload {
                    targets
                        .entry(workload.id.clone())
                        .or_default()
                        .push(target(service, port, number));
                }
                if eligible {
                    places.push(Place { addr: SocketAddr::new(ip, number), workload });
                }
            }
        }
    }
}

/// One endpoint per workload (a dual-stack pod is one pod, and a retry elsewhere must not reach
/// it again): at the address of the family that the service prefers, if it has one.
fn settle(
    mut places: Vec<Place>,
    preferred: Option<&IpAddr>,
    before: &[Arc<Endpoint>],
) -> Vec<Arc<Endpoint>> {
    // Should two pods have one address and port all the same, the first by name has it.
    places.sort_by(|a, b| {
        let order = |place: &Place| (place.addr, place.workload.is_none());
        let name = |place: &Place| place.workload.as_ref().map(|w| w.id.clone());
        order(a).cmp(&order(b)).then_with(|| name(a).cmp(&name(b)))
    });
    places.dedup_by_key(|place| place.addr);
    let fits = |addr: &SocketAddr| preferred.is_none_or(|ip| ip.is_ipv4() == addr.is_ipv4());
    let mut chosen: BTreeMap<SocketAddr, Option<Arc<Workload>>> = BTreeMap::new();
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
        chosen.insert(place.addr, place.workload);
    }
    chosen.into_iter().map(|(addr, workload)| reuse(addr, workload, before)).collect()
}

fn reuse(
    addr: SocketAddr,
    workload: Option<Arc<Workload>>,
    before: &[Arc<Endpoint>],
) -> Arc<Endpoint> {
    let old = before.binary_search_by_key(&addr, |e| e.addr).ok().map(|at| &before[at]);
    match old {
        Some(old) if same_workload(old.workload.as_ref(), workload.as_ref()) => Arc::clone(old),
        Some(old) => Arc::new(Endpoint { addr, workload, load: old.load.clone() }),
        None => Arc::new(Endpoint { addr, workload, load: Default::default() }),
    }
}

fn same_workload(a: Option<&Arc<Workload>>, b: Option<&Arc<Workload>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}
