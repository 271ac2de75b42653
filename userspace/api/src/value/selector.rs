//! Selectors and references that several APIs share.

use serde::Deserialize;

use crate::StringMap;

/// Istio `type/v1beta1.WorkloadSelector`: the workloads that a policy applies to.
///
/// Networking's own selector (`Sidecar`, `ServiceEntry`) writes `labels` in place of
/// `matchLabels`; those types hold a [`StringMap`] of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Every one of these labels must be on the workload with this value; empty selects all.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::match_labels"))]
    pub match_labels: StringMap,
}

/// Istio `type/v1beta1.PolicyTargetReference`: what a policy attaches to, instead of a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("kind name")))]
pub struct PolicyTargetReference {
    /// API group of the target: empty for core.
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(max = 253),
            regex(
                pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
            )
        )
    )]
    pub group: String,
    /// Kind of the target, such as `Service` or `Gateway`.
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(min = 1, max = 63),
            regex(pattern = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
        )
    )]
    pub kind: String,
    /// Name of the target.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// Namespace of the target; the policy's own if empty.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "self.size() == 0",
        "a policy attaches to targets of its own namespace"
    )))]
    pub namespace: String,
}

/// Istio `networking/v1alpha3.Percent`: `{value: 12.5}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Percent {
    /// 0.0 to 100.0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100)))]
    pub value: f64,
}
