//! Errors as the specification wants them.

use std::fmt;

use serde_json::{Value, json};

/// Error codes of the CNI specification, section 5, "Error".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Incompatible CNI version.
    Version = 1,
    /// Invalid necessary environment variables.
    Environment = 4,
    /// I/O failure.
    Io = 5,
    /// Failed to decode content.
    Decode = 6,
    /// Invalid network config.
    InvalidConfig = 7,
    /// Try again later.
    TryAgainLater = 11,
    /// The plugin is not available: it cannot serve ADD.
    PluginNotAvailable = 50,
}

/// What the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Code.
    pub code: Code,
    /// Why, for people: kubelet shows it as an event of the pod.
    pub details: String,
}

impl CniError {
    /// An error.
    #[must_use]
    pub fn new(code: Code, details: String) -> Self {
        Self { code, details }
    }

    fn message(&self) -> &'static str {
        match self.code {
            Code::Version => "incompatible CNI version",
            Code::Environment => "invalid environment variables",
            Code::Io => "I/O failure",
            Code::Decode => "the configuration cannot be decoded",
            Code::InvalidConfig => "invalid network configuration",
            Code::TryAgainLater => "the pod is to be in the mesh and cannot be captured now",
            Code::PluginNotAvailable => "the Fairlead node daemon is not available",
        }
    }

    /// The object for standard output.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.message(),
            "details": self.details,
        })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message(), self.details)
    }
}

impl std::error::Error for CniError {}
