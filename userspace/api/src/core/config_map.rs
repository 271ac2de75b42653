//! Kubernetes `core/v1.ConfigMap`.

use serde::Deserialize;

use crate::{ObjectMeta, StringMap};

/// Named texts; `istio` in the root namespace holds MeshConfig under the key `mesh`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// Texts.
    pub data: StringMap,
}
