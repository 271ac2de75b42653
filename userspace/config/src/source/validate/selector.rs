//! Selectors and target references of policies.

use fairlead_api::{PolicyTargetReference, WorkloadSelector};

use crate::source::path::Path;
use crate::source::sink::Sink;

/// What a policy can attach to.
const TARGETS: &[(&str, &str)] = &[
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

/// Labels of workloads; a wildcard would match nothing.
pub(super) fn workload_selector(value: &WorkloadSelector, at: &Path<'_>, sink: &mut Sink<'_>) {
    let at = at.field("matchLabels");
    for (key, value) in &value.match_labels {
        if key.is_empty() {
            sink.error(&at.key(key), "the key is empty", "the key of a label");
        }
        if key.contains('*') || value.contains('*') {
            sink.error(&at.key(key), "wildcards do not work here", "keys and values as they are");
        }
    }
    if value.match_labels.is_empty() {
        sink.warn(&at, "there are no labels: all workloads are meant", "");
    }
}

/// Selector or target references, not both.
pub(super) fn attachment(
    selector: Option<&WorkloadSelector>,
    single: Option<&PolicyTargetReference>,
    several: &[PolicyTargetReference],
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    if let Some(selector) = selector {
        workload_selector(selector, &at.field("selector"), sink);
    }
    let set = [selector.is_some(), single.is_some(), !several.is_empty()];
    if set.iter().filter(|set| **set).count() > 1 {
        let message = "says in several ways what it attaches to";
        sink.error(at, message, "one of selector and targetRefs");
    }
    if let Some(target) = single {
        target_reference(target, &at.field("targetRef"), sink);
    }
    let at = at.field("targetRefs");
    for (index, target) in several.iter().enumerate() {
        target_reference(target, &at.index(index), sink);
    }
}

fn target_reference(target: &PolicyTargetReference, at: &Path<'_>, sink: &mut Sink<'_>) {
    if target.name.is_empty() {
        sink.error(&at.field("name"), "is missing", "the name of the target");
    }
    if !target.namespace.is_empty() {
        let message = "a policy attaches to targets of its own namespace";
        sink.error(&at.field("namespace"), message, "nothing");
    }
    if !TARGETS.contains(&(target.group.as_str(), target.kind.as_str())) {
        let message = format!("{}/{} is not a target", target.group, target.kind);
        sink.error(&at.field("kind"), message, "Service, ServiceEntry, Gateway or GatewayClass");
    }
}
