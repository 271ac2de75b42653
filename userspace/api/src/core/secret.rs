//! Kubernetes `core/v1.Secret`.

use std::fmt;

use serde::Deserialize;

use crate::{ObjectMeta, StringMap};

/// Named secret values. `Debug` prints their names only.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// Such as `kubernetes.io/tls`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Values, base64.
    pub data: StringMap,
    /// Values as text; they win over `data`.
    pub string_data: StringMap,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("type", &self.kind)
            .field("data", &self.data.keys().collect::<Vec<_>>())
            .field("string_data", &self.string_data.keys().collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_keeps_the_secret() {
        let secret = Secret {
            data: [("tls.key".to_owned(), "aHVudGVyMg==".to_owned())].into(),
            ..Secret::default()
        };
        let text = format!("{secret:?}");
        assert!(text.contains("tls.key") && !text.contains("aHVudGVyMg"), "{text}");
    }
}
