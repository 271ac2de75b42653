//! Selectors and references that several APIs share.

use serde::Deserialize;

use crate::StringMap;

/// Istio `type/v1beta1.WorkloadSelector`: the workloads that a policy applies to.
///
/// Networking's own selector (`Sidecar`, `ServiceEntry`) writes `labels` in place of
/// `matchLabels`; those types hold a [`StringMap`] of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Every one of these labels must be on the workload with this value; empty selects all.
    pub match_labels: StringMap,
}

/// Istio `type/v1beta1.PolicyTargetReference`: what a policy attaches to, instead of a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyTargetReference {
    /// API group of the target: empty for core.
    pub group: String,
    /// Kind of the target, such as `Service` or `Gateway`.
    pub kind: String,
    /// Name of the target.
    pub name: String,
    /// Namespace of the target; the policy's own if empty.
    pub namespace: String,
}

/// Istio `networking/v1alpha3.Percent`: `{value: 12.5}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Percent {
    /// 0.0 to 100.0.
    pub value: f64,
}
