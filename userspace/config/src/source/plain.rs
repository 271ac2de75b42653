//! A text of YAML as a value of one's own, with the bounds and the error messages of this module:
//! for settings files.

use std::cell::RefCell;

use serde::de::DeserializeOwned;

use super::de;
use super::path::Path;
use super::yaml;

/// Reads the first document of a text; a text without one is the default.
///
/// # Errors
/// Says the line, the field and what is wrong; a field that `T` does not have is wrong, too.
pub fn from_yaml<T: DeserializeOwned + Default>(text: &str) -> Result<T, String> {
    let node = match yaml::Documents::new(text).next() {
        None => return Ok(T::default()),
        Some(Ok(node)) => node,
        Some(Err(error)) => return Err(format!("line {}: {}", error.line, error.message)),
    };
    let unknown = RefCell::default();
    let value = de::from_node(&node, &Path::Root, true, &unknown).map_err(|mismatch| {
        let parts = mismatch.into_parts();
        let (field, line) = parts.place.unwrap_or_default();
        let allowed = parts.allowed.map(|a| format!("; expected {a}")).unwrap_or_default();
        format!("line {line}: {field}: {}{allowed}", parts.message)
    })?;
    match unknown.into_inner().first() {
        None => Ok(value),
        Some(field) => {
            let near = field.suggestion.map(|s| format!("; did you mean {s}?")).unwrap_or_default();
            Err(format!("line {}: {} is not a known field{near}", field.line, field.path))
        }
    }
}
