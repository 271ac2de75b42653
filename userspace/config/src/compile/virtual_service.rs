//! VirtualServices: which one speaks for a host.
//!
//! The most specific host wins: exact before wildcard, a longer wildcard before a shorter. Of
//! several VirtualServices with the same host the oldest visible one wins and the others have no
//! effect on it (Istio merges them for gateways only); age is `creationTimestamp`, then name, then
//! namespace, as in Istio's `sortConfigByCreationTime`. Who loses is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_api::networking::VirtualService;
use fairlead_api::{Kind, ObjectKey};

use super::host::{ExportTo, HostPattern};

/// The gateway name that stands for all pods.
pub(super) const MESH_GATEWAY: &str = "mesh";

/// Whether a list of gateways includes the pods of the mesh (an empty one does).
pub(super) fn applies_to_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH_GATEWAY)
}

/// One VirtualService, with what lookups need.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: ObjectKey,
    pub(super) hosts: Box<[HostPattern]>,
    export: ExportTo,
    created: String,
    pub(super) object: Arc<VirtualService>,
}

impl Entry {
    fn new(object: &Arc<VirtualService>, domain: &str, export: &[String]) -> Self {
        let metadata = &object.metadata;
        let mut hosts: Vec<HostPattern> = object
            .spec
            .hosts
            .iter()
            .map(|host| HostPattern::new(host, &metadata.namespace, domain))
            .collect();
        hosts.sort();
        hosts.dedup();
        Self {
            key: ObjectKey::new(Kind::VirtualService, &metadata.namespace, &metadata.name),
            hosts: hosts.into(),
            export: ExportTo::new(&object.spec.export_to, export, &metadata.namespace),
            created: metadata.creation_timestamp.clone().unwrap_or_default(),
            object: Arc::clone(object),
        }
    }

    fn age(&self) -> (&str, &str, &str) {
        (&self.created, &self.key.name, &self.key.namespace)
    }
}

/// All VirtualServices that apply to pods.
#[derive(Debug, Default)]
pub(super) struct VirtualServices {
    by_key: BTreeMap<(Arc<str>, Arc<str>), Arc<Entry>>,
    by_pattern: BTreeMap<HostPattern, Vec<Arc<Entry>>>,
}

impl VirtualServices {
    /// Takes one in, or out; returns the patterns whose hosts may have changed. `export` is what holds
    /// where it says nothing of `exportTo`.
    pub(super) fn update(
        &mut self,
        key: &ObjectKey,
        object: Option<&Arc<VirtualService>>,
        domain: &str,
        export: &[String],
    ) -> Vec<HostPattern> {
        let mut touched = Vec::new();
        let name = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        if let Some(old) = self.by_key.remove(&name) {
            for pattern in &old.hosts {
                if let Some(entries) = self.by_pattern.get_mut(pattern) {
                    entries.retain(|entry| !Arc::ptr_eq(entry, &old));
                    if entries.is_empty() {
                        self.by_pattern.remove(pattern);
                    }
                }
            }
            touched.extend(old.hosts.iter().cloned());
        }
        if let Some(object) = object.filter(|object| applies_to_mesh(&object.spec.gateways)) {
            let entry = Arc::new(Entry::new(object, domain, export));
            for pattern in &entry.hosts {
                let entries = self.by_pattern.entry(pattern.clone()).or_default();
                entries.push(Arc::clone(&entry));
                entries.sort_by(|a, b| a.age().cmp(&b.age()));
            }
            touched.extend(entry.hosts.iter().cloned());
            self.by_key.insert(name, entry);
        }
        touched
    }

    /// Those that say nothing of `exportTo`.
    pub(super) fn unexported(&self) -> Vec<(ObjectKey, Arc<VirtualService>)> {
        let silent = self.by_key.values().filter(|entry| entry.object.spec.export_to.is_empty());
        silent.map(|entry| (entry.key.clone(), Arc::clone(&entry.object))).collect()
    }

    /// All hosts that are written.
    pub(super) fn patterns(&self) -> impl Iterator<Item = &HostPattern> {
        self.by_pattern.keys()
    }

    /// Whether a host is written exactly so.
    pub(super) fn has(&self, pattern: &HostPattern) -> bool {
        self.by_pattern.contains_key(pattern)
    }

    /// Those whose hosts cover `pattern`, the most specific host first, the oldest of one host
    /// first. A wildcard is covered by itself and by all shorter ones.
    fn covering(&self, pattern: &HostPattern) -> impl Iterator<Item = &Arc<Entry>> {
        let text = match pattern {
            HostPattern::Exact(text) | HostPattern::Wildcard(text) => Arc::clone(text),
        };
        let first = match pattern {
            HostPattern::Exact(_) => self.by_pattern.get(pattern),
            HostPattern::Wildcard(_) => None,
        };
        // All suffixes are looked up, the longest first, so that the number of VirtualServices
        // does not matter. What follows a star begins with one of two bytes, or is empty.
        let wildcards = (0..=text.len()).filter_map(move |at| {
            let begins = at == text.len() || matches!(text.as_bytes()[at], b'.' | b'-');
            begins.then(|| HostPattern::Wildcard(text[at..].into()))
        });
        let wildcards = wildcards.filter_map(|pattern| self.by_pattern.get(&pattern));
        first.into_iter().chain(wildcards).flatten()
    }

    /// The one that speaks for `host` to clients in `client`, or to those of a namespace that no
    /// resource names.
    pub(super) fn select(&self, host: &Arc<str>, client: Option<&str>) -> Option<&Arc<Entry>> {
        self.select_pattern(&HostPattern::Exact(Arc::clone(host)), client)
    }

    /// The one that speaks for the hosts of a pattern.
    pub(super) fn select_pattern(
        &self,
        pattern: &HostPattern,
        client: Option<&str>,
    ) -> Option<&Arc<Entry>> {
        if self.by_key.is_empty() {
            return None;
        }
        self.covering(pattern).find(|entry| entry.export.is_visible(client))
    }

    /// Those that another one keeps from having an effect on `pattern`, with the winner.
    pub(super) fn losers(&self, pattern: &HostPattern) -> Vec<(&Arc<Entry>, &Arc<Entry>)> {
        let Some(entries) = self.by_pattern.get(pattern) else { return Vec::new() };
        let beaten = |loser: &Arc<Entry>, winner: &Arc<Entry>| match (&loser.export, &winner.export)
        {
            (_, ExportTo::All) => true,
            (ExportTo::All, ExportTo::Namespaces(_)) => false,
            (ExportTo::Namespaces(own), ExportTo::Namespaces(_)) => {
                own.iter().any(|namespace| winner.export.is_visible(Some(namespace)))
            }
        };
        entries
            .iter()
            .enumerate()
            .filter_map(|(i, loser)| {
                let winner = entries[..i].iter().find(|winner| beaten(loser, winner))?;
                Some((loser, winner))
            })
            .collect()
    }

    /// Namespaces whose clients may see other routes for a pattern than everybody else.
    pub(super) fn special_clients(&self, pattern: &HostPattern) -> BTreeSet<Arc<str>> {
        if self.by_key.is_empty() {
            return BTreeSet::new();
        }
        self.covering(pattern).flat_map(|entry| entry.export.named().iter().cloned()).collect()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}
