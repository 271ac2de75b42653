//! Services as the compiler keeps them, and the index from labels to the services that select
//! them.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairlead_api::core::{Protocol, Service as ApiService, ServiceType};
use fairlead_api::{IntOrString, ObjectKey, StringMap};
use fairlead_types::{AppProtocol, Labels, WorkloadId};
use foldhash::fast::RandomState;

use super::client::Client;
use super::clusters::Variant;
use super::locality::{Preference, Sites};
use super::problem::Report;
use crate::model::{Service, ServiceKey};

/// A port of a service, as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PortSpec {
    pub(super) number: u16,
    pub(super) name: Option<Arc<str>>,
    pub(super) protocol: AppProtocol,
    pub(super) target: IntOrString,
}

/// A service and what was compiled for it.
#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) key: ServiceKey,
    pub(super) service: Arc<Service>,
    /// TCP ports, ordered by number.
    pub(super) ports: Vec<PortSpec>,
    /// `None`: somebody else writes its EndpointSlices.
    pub(super) selector: Option<Labels>,
    /// Where [`Services::by_label`] has it.
    filed_under: Option<u64>,
    pub(super) publish_not_ready: bool,
    pub(super) preference: Preference,
    /// Clusters for everybody (the first), then for single clients.
    pub(super) variants: Vec<Variant>,
    /// Endpoints by port, in the order of `ports`, each ordered by address.
    pub(super) endpoints: Box<[Sites]>,
    /// The pods that it leads to.
    pub(super) pods: HashSet<WorkloadId, RandomState>,
}

impl ServiceEntry {
    /// Compiles the definition; `None` when it is of a kind that has no endpoints here.
    pub(super) fn compile(
        object: &ApiService,
        host: &Arc<str>,
        key: &ObjectKey,
        report: &mut Report<'_>,
    ) -> Option<Self> {
        if object.spec.kind == ServiceType::ExternalName {
            report.warning("spec.type", "ExternalName is not supported yet; it has no effect");
            return None;
        }
        let mut ports: Vec<PortSpec> = Vec::new();
        for (i, port) in object.spec.ports.iter().enumerate() {
            if port.protocol != Protocol::Tcp {
                continue;
            }
            if port.port == 0 || ports.iter().any(|p| p.number == port.port) {
                report.error(
                    format!("spec.ports[{i}].port"),
                    format!("{} is 0 or there twice; this port is not served", port.port),
                );
                continue;
            }
            let name = Some(port.name.as_str()).filter(|name| !name.is_empty());
            ports.push(PortSpec {
                number: port.port,
                name: name.map(Into::into),
                protocol: AppProtocol::select(port.app_protocol.as_deref(), name),
                target: match &port.target_port {
                    Some(IntOrString::Int(0)) | None => IntOrString::Int(port.port),
                    Some(target) => target.clone(),
                },
            });
        }
        ports.sort_by_key(|port| port.number);
        ports.shrink_to_fit();
        let mut vips: Vec<IpAddr> = Vec::new();
        if !object.is_headless() {
            for ip in object.cluster_ips().map(|ip| ip.to_canonical()) {
                if !vips.contains(&ip) {
                    vips.push(ip);
                }
            }
        }
        let service = Service {
            host: Arc::clone(host),
            name: Arc::clone(&key.name),
            namespace: Arc::clone(&key.namespace),
            vips: vips.into(),
        };
        Some(Self {
            key: ServiceKey {
                namespace: Arc::clone(&service.namespace),
                name: Arc::clone(&service.name),
            },
            service: Arc::new(service),
            ports,
            selector: (!object.spec.selector.is_empty()).then(|| {
                object.spec.selector.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
            }),
            filed_under: None,
            publish_not_ready: object.spec.publish_not_ready_addresses,
            preference: Preference::of(object, report),
            variants: Vec::new(),
            endpoints: Box::default(),
            pods: HashSet::default(),
        })
    }

    /// Whether the definitions are the same.
    pub(super) fn same_definition(&self, other: &Self) -> bool {
        self.service == other.service
            && self.ports == other.ports
            && self.selector == other.selector
            && self.publish_not_ready == other.publish_not_ready
            && self.preference == other.preference
    }

    /// The clusters that `client` uses.
    pub(super) fn variant(&self, client: Option<&Client>) -> Option<&Variant> {
        let own = client
            .and_then(|client| self.variants.iter().find(|v| v.client.as_ref() == Some(client)));
        own.or_else(|| self.variants.first())
    }

    /// The address and port pairs under which clients reach it.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.service
            .vips
            .iter()
            .flat_map(|ip| self.ports.iter().map(|port| SocketAddr::new(*ip, port.number)))
    }
}

/// All services, by host.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_host: HashMap<Arc<str>, Box<ServiceEntry>, RandomState>,
    /// One label of each selector (the rarest when it came) to the services that have it there, in
    /// order; keys are hashes of (namespace, label, value), and what is found is checked.
    by_label: HashMap<u64, Vec<Arc<str>>, RandomState>,
    hasher: RandomState,
}

impl Services {
    pub(super) fn get(&self, host: &str) -> Option<&ServiceEntry> {
        self.by_host.get(host).map(|entry| &**entry)
    }

    pub(super) fn get_mut(&mut self, host: &str) -> Option<&mut ServiceEntry> {
        self.by_host.get_mut(host).map(|entry| &mut **entry)
    }

    /// The host as it is kept here.
    pub(super) fn host(&self, host: &str) -> Option<&Arc<str>> {
        self.by_host.get(host).map(|entry| &entry.service.host)
    }

    pub(super) fn contains(&self, host: &str) -> bool {
        self.by_host.contains_key(host)
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_host.keys()
    }

    pub(super) fn insert(&mut self, mut entry: ServiceEntry) {
        let host = Arc::clone(&entry.service.host);
        self.unfile(&host);
        if let Some(selector) = &entry.selector {
            let namespace = &entry.key.namespace;
            let label = selector
                .iter()
                .map(|(key, value)| self.hash(namespace, key, value))
                .min_by_key(|label| self.by_label.get(label).map_or(0, Vec::len));
            if let Some(label) = label {
                let bucket = self.by_label.entry(label).or_default();
                if let Err(at) = bucket.binary_search(&host) {
                    // Most have one.
                    if bucket.is_empty() {
                        bucket.reserve_exact(1);
                    }
                    bucket.insert(at, Arc::clone(&host));
                }
                entry.filed_under = Some(label);
            }
        }
        self.by_host.insert(host, Box::new(entry));
    }

    pub(super) fn remove(&mut self, host: &str) -> Option<ServiceEntry> {
        self.unfile(host);
        self.by_host.remove(host).map(|entry| *entry)
    }

    fn unfile(&mut self, host: &str) {
        if let Some(label) = self.by_host.get_mut(host).and_then(|e| e.filed_under.take())
            && let Some(bucket) = self.by_label.get_mut(&label)
        {
            if let Ok(at) = bucket.binary_search_by(|other| (**other).cmp(host)) {
                bucket.remove(at);
            }
            if bucket.is_empty() {
                self.by_label.remove(&label);
            }
        }
    }

    fn hash(&self, namespace: &str, key: &str, value: &str) -> u64 {
        self.hasher.hash_one((namespace, key, value))
    }

    /// The services that select a pod with `labels` in `namespace`.
    pub(super) fn selecting<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a StringMap,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        labels
            .iter()
            .filter_map(move |(key, value)| self.by_label.get(&self.hash(namespace, key, value)))
            .flatten()
            .filter(move |host| {
                self.by_host.get(*host).is_some_and(|entry| {
                    *entry.key.namespace == *namespace
                        && entry.selector.as_ref().is_some_and(|selector| {
                            selector.iter().all(|(k, v)| labels.get(k).is_some_and(|l| l == v))
                        })
                })
            })
    }
}
