//! What the fuzz targets reach of the private parsers of this module. No part of the API.

use std::path::Path;

use fairlead_wire::config::Key;

use super::objects;
use super::state::{Identity, read, seal};

/// Reads a state file of node `n` of cluster `c`; how many objects it holds.
///
/// # Errors
/// Why none of it is used.
pub fn state(mut bytes: &[u8]) -> Result<usize, String> {
    let whose = Identity { node: "n".into(), cluster: "c".into(), trim: 1 };
    let contents = read(&mut bytes, &whose).map_err(|e| e.to_string())?;
    Ok(contents.objects.len())
}

/// A state file with these records, each a kind and a payload, under checksums that fit: what is
/// wrong with such a file is in the payloads.
#[must_use]
pub fn sealed(records: &[(u8, &[u8])]) -> Vec<u8> {
    seal(records)
}

/// The path of a key, and the key of that path again.
#[must_use]
pub fn key(key: &Key) -> Option<Option<Key>> {
    objects::path_of(key).ok().map(|path| objects::key_of(Path::new(&path)))
}
