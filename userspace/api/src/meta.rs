//! What every object carries: Kubernetes `metadata`, and the envelope of Istio's kinds.

use serde::Deserialize;

use crate::StringMap;

/// Kubernetes `ObjectMeta` (`meta/v1`), the fields that a mesh reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Name, unique per kind and namespace.
    pub name: String,
    /// Namespace; empty for cluster-scoped kinds. The reader fills in `default` where a
    /// namespaced object has none.
    pub namespace: String,
    /// Labels: what selectors match.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Unique id given by the API server; may be absent in files.
    pub uid: String,
    /// RFC 3339 time of creation; decides which of two conflicting objects is older.
    pub creation_timestamp: Option<String>,
    /// RFC 3339 time at which deletion was asked for: the object is on its way out.
    pub deletion_timestamp: Option<String>,
    /// Generation of the spec.
    pub generation: i64,
    /// Owners; the one with `controller: true` names a pod's workload.
    pub owner_references: Vec<OwnerReference>,
}

/// Kubernetes `OwnerReference` (`meta/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Kind of the owner, such as `ReplicaSet`.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Whether this owner is the managing controller.
    pub controller: bool,
}

/// An object of metadata and spec: all of Istio's kinds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Object<S> {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
}
