//! Which pods the mesh carries: by the labels that people use already, Istio's and our own.
//!
//! | where | label or annotation | joins | stays out |
//! |---|---|---|---|
//! | pod, namespace | `fairlead.io/mesh` | `enabled` | `disabled` |
//! | pod, namespace | `istio.io/dataplane-mode` | `ambient` | `none` |
//! | pod (label, or annotation as in old Istio) | `sidecar.istio.io/inject` | `true` | `false` |
//! | namespace | `istio-injection` | `enabled` | `disabled` |
//! | pod, namespace | `istio.io/rev` | any revision | |
//!
//! A pod's own word wins over its namespace's; within one of them the rows above decide from top
//! to bottom. Whatever the labels say, a pod on the host's network cannot be told from its node
//! and never joins, and a pod that has an Istio sidecar is already in other hands.

use fairlead_api::core::Pod;
use fairlead_api::{ObjectMeta, StringMap};

/// Label of our own, on pods and namespaces.
pub const MESH_LABEL: &str = "fairlead.io/mesh";
/// Annotation on a pod: path of its network namespace.
pub const NETNS_ANNOTATION: &str = "fairlead.io/netns";
/// Annotation on a pod: `native` or `hbone`, how other nodes reach it.
pub const TRANSPORT_ANNOTATION: &str = "fairlead.io/transport";

/// Annotation on a pod, with a reason: its traffic is captured and refused, if it is in the mesh.
/// Configuration sets it on what is left of a Pod that cannot be read as a whole.
pub const REFUSED_ANNOTATION: &str = "fairlead.io/refused";

/// Whether a pod is in the mesh, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// In, because the pod says so.
    ByPod,
    /// In, because its namespace says so.
    ByNamespace,
    /// Out: nobody asked for it.
    NotAsked,
    /// Out: the pod says so.
    RefusedByPod,
    /// Out: the namespace says so.
    RefusedByNamespace,
    /// Out: it shares its node's network.
    HostNetwork,
    /// Out: it has an Istio sidecar.
    Sidecar,
}

impl Enrolment {
    /// Whether the pod is in the mesh.
    #[must_use]
    pub fn is_enrolled(self) -> bool {
        matches!(self, Self::ByPod | Self::ByNamespace)
    }

    /// Decides for `pod`, whose namespace carries `namespace_labels`.
    #[must_use]
    pub fn of(pod: &Pod, namespace_labels: Option<&StringMap>) -> Self {
        if pod.spec.host_network {
            return Self::HostNetwork;
        }
        if has_sidecar(pod) {
            return Self::Sidecar;
        }
        match pod_word(&pod.metadata) {
            Some(true) => return Self::ByPod,
            Some(false) => return Self::RefusedByPod,
            None => {}
        }
        match namespace_labels.and_then(namespace_word) {
            Some(true) => Self::ByNamespace,
            Some(false) => Self::RefusedByNamespace,
            None => Self::NotAsked,
        }
    }
}

fn has_sidecar(pod: &Pod) -> bool {
    // Native sidecars are init containers that keep running.
    pod.metadata.annotations.contains_key("sidecar.istio.io/status")
        || pod
            .spec
            .containers
            .iter()
            .chain(&pod.spec.init_containers)
            .any(|container| container.name == "istio-proxy")
}

fn pod_word(metadata: &ObjectMeta) -> Option<bool> {
    let inject = "sidecar.istio.io/inject";
    mesh_word(&metadata.labels)
        .or_else(|| switch(&metadata.labels, inject, "true", "false"))
        .or_else(|| switch(&metadata.annotations, inject, "true", "false"))
        .or_else(|| revision(&metadata.labels))
}

fn namespace_word(labels: &StringMap) -> Option<bool> {
    mesh_word(labels)
        .or_else(|| switch(labels, "istio-injection", "enabled", "disabled"))
        .or_else(|| revision(labels))
}

fn mesh_word(labels: &StringMap) -> Option<bool> {
    switch(labels, MESH_LABEL, "enabled", "disabled")
        .or_else(|| switch(labels, "istio.io/dataplane-mode", "ambient", "none"))
}

fn revision(labels: &StringMap) -> Option<bool> {
    labels.get("istio.io/rev").filter(|revision| !revision.is_empty()).map(|_| true)
}

/// `Some` when the label has one of the two values; any other value says nothing.
fn switch(labels: &StringMap, key: &str, on: &str, off: &str) -> Option<bool> {
    let value = labels.get(key)?;
    if value == on {
        Some(true)
    } else if value == off {
        Some(false)
    } else {
        None
    }
}

/// A label or annotation of enrolment with a value that says nothing: most likely a slip, and the
/// pods stay outside for it.
pub(crate) struct Unclear<'m> {
    /// `labels` or `annotations`.
    pub(crate) field: &'static str,
    /// Which.
    pub(crate) key: &'static str,
    /// What is written.
    pub(crate) value: &'m str,
    /// The values that mean something.
    pub(crate) allowed: [&'static str; 2],
}

/// All that is unclear in what a pod, or else a namespace, says about enrolment.
pub(crate) fn unclear(metadata: &ObjectMeta, of_pod: bool) -> impl Iterator<Item = Unclear<'_>> {
    const INJECT: (&str, [&str; 2]) = ("sidecar.istio.io/inject", ["true", "false"]);
    const NAMESPACE: (&str, [&str; 2]) = ("istio-injection", ["enabled", "disabled"]);
    let annotation = of_pod.then_some(("annotations", &metadata.annotations, INJECT));
    let words = [
        (MESH_LABEL, ["enabled", "disabled"]),
        ("istio.io/dataplane-mode", ["ambient", "none"]),
        if of_pod { INJECT } else { NAMESPACE },
    ];
    let labels = words.into_iter().map(|word| ("labels", &metadata.labels, word));
    labels.chain(annotation).filter_map(|(field, map, (key, allowed))| {
        let value = map.get(key)?.as_str();
        (!allowed.contains(&value)).then_some(Unclear { field, key, value, allowed })
    })
}

#[cfg(test)]
mod tests {
    use fairlead_api::core::Container;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> StringMap {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn labels_decide() {
        use Enrolment::{ByNamespace, ByPod, NotAsked, RefusedByNamespace, RefusedByPod};
        let ambient = ("istio.io/dataplane-mode", "ambient");
        let none = ("istio.io/dataplane-mode", "none");
        let inject = ("istio-injection", "enabled");
        let no_inject = ("istio-injection", "disabled");
        let rev = ("istio.io/rev", "1-27");
        let ours = ("fairlead.io/mesh", "enabled");
        let not_ours = ("fairlead.io/mesh", "disabled");
        let pod_true = ("sidecar.istio.io/inject", "true");
        let pod_false = ("sidecar.istio.io/inject", "false");
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], Enrolment);
        let table: &[Row<'_>] = &[
            (&[], &[], NotAsked),
            (&[ambient], &[], ByNamespace),
            (&[inject], &[], ByNamespace),
            (&[rev], &[], ByNamespace),
            (&[ours], &[], ByNamespace),
            (&[none], &[], RefusedByNamespace),
            (&[no_inject], &[], RefusedByNamespace),
            (&[not_ours], &[], RefusedByNamespace),
            (&[], &[ambient], ByPod),
            (&[], &[ours], ByPod),
            (&[], &[pod_true], ByPod),
            (&[], &[rev], ByPod),
            (&[ambient], &[none], RefusedByPod),
            (&[inject], &[pod_false], RefusedByPod),
            (&[ours], &[not_ours], RefusedByPod),
            (&[ambient], &[not_ours], RefusedByPod),
            (&[no_inject], &[pod_true], ByPod),
            (&[none], &[ambient], ByPod),
            // Within one object: our own label, then the dataplane mode, then injection, then rev.
            (&[ours, none], &[], ByNamespace),
            (&[not_ours, ambient], &[], RefusedByNamespace),
            (&[ambient, no_inject], &[], ByNamespace),
            (&[no_inject, rev], &[], RefusedByNamespace),
            (&[], &[ambient, pod_false], ByPod),
            // A value that nobody defined says nothing.
            (&[("istio.io/dataplane-mode", "Ambient")], &[], NotAsked),
            (&[("istio-injection", "true")], &[], NotAsked),
            (&[("istio.io/rev", "")], &[], NotAsked),
            (&[ambient], &[("sidecar.istio.io/inject", "maybe")], ByNamespace),
        ];
        for (namespace, labels, expected) in table {
            let mut pod = Pod::default();
            pod.metadata.labels = map(labels);
            assert_eq!(
                Enrolment::of(&pod, Some(&map(namespace))),
                *expected,
                "namespace {namespace:?}, pod {labels:?}"
            );
        }
        let mut pod = Pod::default();
        pod.metadata.annotations = map(&[pod_false]);
        assert_eq!(Enrolment::of(&pod, Some(&map(&[inject]))), RefusedByPod);
        assert_eq!(Enrolment::of(&Pod::default(), None), NotAsked);
    }

    #[test]
    fn some_pods_never_join() {
        let namespace = map(&[("istio.io/dataplane-mode", "ambient")]);
        let mut host = Pod::default();
        host.spec.host_network = true;
        host.metadata.labels = map(&[("fairlead.io/mesh", "enabled")]);
        assert_eq!(Enrolment::of(&host, Some(&namespace)), Enrolment::HostNetwork);

        let mut sidecar = Pod::default();
        sidecar.spec.init_containers =
            vec![Container { name: "istio-proxy".to_owned(), ..Container::default() }];
        assert_eq!(Enrolment::of(&sidecar, Some(&namespace)), Enrolment::Sidecar);

        let mut injected = Pod::default();
        injected.metadata.annotations = map(&[("sidecar.istio.io/status", "{}")]);
        assert_eq!(Enrolment::of(&injected, Some(&namespace)), Enrolment::Sidecar);
        assert!(!Enrolment::Sidecar.is_enrolled() && Enrolment::ByPod.is_enrolled());
    }
}
