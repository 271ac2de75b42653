//! Kubernetes `core/v1.Namespace`.

use serde::Deserialize;

use crate::ObjectMeta;

/// A namespace; its labels enrol its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
}
