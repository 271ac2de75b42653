//! What the fuzz targets reach of the private parsers of this module. No part of the API.

use std::path::Path;

use fairlead_wire::config::Key;

use super::objects;
use super::state::{Identity, read};

/// Reads a state file of node `n` of cluster `c`; how many objects it holds.
///
/// # Errors
/// Why none of it is used.
pub fn state(mut bytes: &[u8]) -> Result<usize, String> {
    let whose = Identity { node: "n".into(), cluster: "c".into(), trim: 1 };
    let contents = read(&mut bytes, &whose).map_err(|e| e.to_string())?;
    Ok(contents.objects.len())
}

/// The path of a key, and the key of that path again.
#[must_use]
pub fn key(key: &Key) -> Option<Option<Key>> {
    objects::path_of(key).ok().map(|path| objects::key_of(Path::new(&path)))
}
