//! PeerAuthentication to the mTLS mode of a workload and its ports.
//!
//! The narrowest scope that says something counts: workload, then namespace, then mesh, then
//! PERMISSIVE; within a scope the oldest (Istio `ComposePeerAuthentication`). Age is
//! `creationTimestamp`, then name.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_api::security::{MutualTlsMode, PeerAuthentication};
use fairlead_api::{Kind, ObjectKey};
use fairlead_types::Labels;

use super::problem::{Problem, Report};
use super::route::labels;
use super::security::FailClosed;
use crate::model::{MeshSettings, MtlsMode, Workload};

/// The modes of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerAuth {
    /// Where no port says otherwise.
    pub(super) mode: MtlsMode,
    /// `portLevelMtls`, resolved, ordered by port.
    pub(super) ports: Vec<(u16, MtlsMode)>,
}

/// All policies, by namespace.
#[derive(Debug, Default)]
pub(super) struct PeerAuthIndex {
    root_namespace: Arc<str>,
    namespaces: BTreeMap<Arc<str>, Vec<Entry>>,
}

/// One PeerAuthentication.
#[derive(Debug)]
struct Entry {
    /// Those that were refused are STRICT, and come before all others of their scope.
    refused: bool,
    created: Box<str>,
    name: Arc<str>,
    selector: Labels,
    /// `None`: UNSET.
    mode: Option<MtlsMode>,
    ports: Box<[(u16, Option<MtlsMode>)]>,
}

/// Takes in all policies. Those of `closed` were refused before they got here and have no earlier
/// version in force: their scope is STRICT.
pub(super) fn compile(
    policies: &[Arc<PeerAuthentication>],
    closed: &[FailClosed],
    mesh: &MeshSettings,
    problems: &mut Vec<Problem>,
) -> PeerAuthIndex {
    let mut namespaces: BTreeMap<Arc<str>, Vec<Entry>> = BTreeMap::new();
    for object in policies {
        let metadata = &object.metadata;
        let key = ObjectKey::new(Kind::PeerAuthentication, &metadata.namespace, &metadata.name);
        let entry = compile_one(&key, object, mesh, &mut Report::new(&key, problems));
        namespaces.entry(key.namespace).or_default().push(entry);
    }
    for FailClosed { key, selector } in closed {
        namespaces.entry(Arc::clone(&key.namespace)).or_default().push(Entry {
            refused: true,
            created: Box::default(),
            name: Arc::clone(&key.name),
            selector: selector.clone(),
            mode: Some(MtlsMode::Strict),
            ports: Box::default(),
        });
    }
    for entries in namespaces.values_mut() {
        // The first that fits counts.
        entries.sort_by(|a, b| {
            (!a.refused, &a.created, &a.name).cmp(&(!b.refused, &b.created, &b.name))
        });
    }
    PeerAuthIndex { root_namespace: Arc::clone(&mesh.root_namespace), namespaces }
}

fn compile_one(
    key: &ObjectKey,
    object: &PeerAuthentication,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Entry {
    let spec = &object.spec;
    let selector = spec.selector.as_ref().map(|s| labels(&s.match_labels)).unwrap_or_default();
    if !selector.is_empty() && *key.namespace == *mesh.root_namespace {
        report.error(
            "spec.selector",
            "workloads cannot be selected from the root namespace; the object has no effect",
        );
    }
    if selector.is_empty() && !spec.port_level_mtls.is_empty() {
        let message = "needs a selector that is not empty; it has no effect";
        report.error("spec.portLevelMtls", message);
    }
    Entry {
        refused: false,
        created: object.metadata.creation_timestamp.as_deref().unwrap_or_default().into(),
        name: Arc::clone(&key.name),
        selector,
        mode: spec.mtls.and_then(|mtls| mode(mtls.mode)),
        ports: spec.port_level_mtls.iter().map(|(port, mtls)| (*port, mode(mtls.mode))).collect(),
    }
}

fn mode(written: MutualTlsMode) -> Option<MtlsMode> {
    match written {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(MtlsMode::Disable),
        MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        MutualTlsMode::Strict => Some(MtlsMode::Strict),
    }
}

impl PeerAuthIndex {
    /// What holds for a workload.
    pub(super) fn for_workload(&self, workload: &Workload) -> PeerAuth {
        let (root, namespace) = (&*self.root_namespace, &*workload.namespace);
        let mesh_wide = self.first(root, |e| e.selector.is_empty());
        let (namespace_wide, own) = if namespace == root {
            (None, None)
        } else {
            let selects =
                |e: &Entry| !e.selector.is_empty() && workload.labels.matches(&e.selector);
            (self.first(namespace, |e| e.selector.is_empty()), self.first(namespace, selects))
        };
        let mode = [own, namespace_wide, mesh_wide]
            .into_iter()
            .flatten()
            .find_map(|entry| entry.mode)
            .unwrap_or_default();
        let ports = own.map_or(&[][..], |entry| &entry.ports);
        PeerAuth { mode, ports: ports.iter().map(|(port, m)| (*port, m.unwrap_or(mode))).collect() }
    }

    fn first(&self, namespace: &str, wanted: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        self.namespaces.get(namespace)?.iter().find(|entry| wanted(entry))
    }
}

#[cfg(test)]
mod tests;
