//! How the plugin reaches the API server: one file, written by the installer and kept fresh.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// What the file holds. Its token may read pods and namespaces, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Addresses of the API server, `https://HOST:PORT`, tried in turn.
    pub servers: Vec<String>,
    /// The certificate authorities that they are trusted by, PEM.
    pub ca: String,
    /// Bearer token.
    pub token: String,
}

impl Access {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, or not what the installer writes.
    pub fn read(path: &Path) -> io::Result<Self> {
        let size = std::fs::metadata(path)?.len();
        if size > MAX_FILE {
            return Err(io::Error::other("too long to be what the installer wrote"));
        }
        serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other)
    }
}
