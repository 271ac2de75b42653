//! Kubernetes `core/v1.ServiceAccount`.

use serde::Deserialize;

use crate::ObjectMeta;

/// A service account: the name behind a workload's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceAccount {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
}
