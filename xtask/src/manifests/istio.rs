//! The outline of Istio's own definitions: which kinds, versions and fields there are, and of what
//! type. Facts alone; none of their text.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fairlead_api::schema;
use fairlead_config::source::from_yaml;
use serde_json::Value;

/// Where it is kept.
const OUTLINE: &str = "userspace/api/src/schema/istio.txt";
/// Groups whose kinds are ours too.
const GROUP: &str = ".istio.io";

/// Writes the outline of the definitions in a file.
pub(super) fn write(root: &Path, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut outlines = Vec::new();
    for document in text.split("\n---\n") {
        let definition: Value =
            from_yaml(document).map_err(anyhow::Error::msg).context("a definition")?;
        let group = definition["spec"]["group"].as_str().unwrap_or_default();
        if definition["kind"] == "CustomResourceDefinition" && group.ends_with(GROUP) {
            outlines.push(schema::outline(&definition));
        }
    }
    ensure!(!outlines.is_empty(), "{}: no definition of {GROUP}", path.display());
    outlines.sort();
    // The module's version, as the Go module cache has it in the name of the folder.
    let mut module = path.components().rev().filter_map(|part| part.as_os_str().to_str());
    let module = module.find(|part| part.contains('@')).unwrap_or("an unknown version");
    let header = format!(
        "# Kinds, versions, fields and types of Istio's definitions ({module}), written by\n\
         # `cargo xtask manifests --istio`. Do not edit.\n"
    );
    fs::write(root.join(OUTLINE), header + &outlines.concat())?;
    println!("wrote {OUTLINE}: {} kinds", outlines.len());
    Ok(())
}
