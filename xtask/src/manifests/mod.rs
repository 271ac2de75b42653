//! `cargo xtask manifests`: what is written from the types of `fairlead-api`: the
//! CustomResourceDefinitions and the table of resources in the documentation.

mod istio;
mod resources;
mod yaml;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fairlead_api::{Kind, schema};
use serde_json::json;

use crate::workspace::root;

/// Where the definitions are.
const DIR: &str = "manifests/crds";
/// Where the table is.
const TABLE: &str = "docs/resources.md";
/// What stands above each written file.
const HEADER: &str =
    "# Written by `cargo xtask manifests` from the types in userspace/api. Do not edit.\n";
/// Lines of a difference that are shown per file.
const SHOWN: usize = 20;

/// Writes the CustomResourceDefinitions and docs/resources.md from the types in userspace/api.
///
/// Examples:
///   cargo xtask manifests
///   cargo xtask manifests --check
///
/// Istio's own definitions, with which a test compares these, come from a Go module:
///   go mod download -json istio.io/api@v1.31.1          (says in which `Dir` it is)
///   cargo xtask manifests --istio Dir/kubernetes/customresourcedefinitions.gen.yaml
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Write nothing; fail with the difference when a file is stale
    #[arg(long)]
    check: bool,

    /// Write the outline of Istio's definitions in this file to userspace/api/src/schema/istio.txt
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    istio: Option<PathBuf>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = root();
    if let Some(path) = &args.istio {
        return istio::write(&root, path);
    }
    if args.check {
        let stale = check(&root)?;
        stale.iter().for_each(|line| println!("{line}"));
        if !stale.is_empty() {
            bail!("manifests are stale; run `cargo xtask manifests`");
        }
        println!("manifests: as the types say");
        return Ok(());
    }
    let files = files()?;
    for (path, text) in &files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            println!("wrote {}", path.strip_prefix(&root).unwrap_or(&path).display());
        }
    }
    for path in left_over(&root, &files)? {
        fs::remove_file(root.join(&path))?;
        println!("removed {}", path.display());
    }
    Ok(())
}

/// What is stale, in words; nothing if every file is as it would be written.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let files = files()?;
    let mut stale = Vec::new();
    for (path, wanted) in &files {
        match fs::read_to_string(root.join(path)) {
            Err(_) => stale.push(format!("{}: is missing", path.display())),
            Ok(found) => stale.extend(difference(path, &found, wanted)),
        }
    }
    for path in left_over(root, &files)? {
        stale.push(format!("{}: no kind has this definition any more", path.display()));
    }
    Ok(stale)
}

/// All that is written, by path below the root.
fn files() -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut names = Vec::new();
    for kind in Kind::ALL {
        let (Some(definition), Some(name)) =
            (schema::custom_resource_definition(*kind)?, schema::definition_name(*kind))
        else {
            continue;
        };
        let name = format!("{name}.yaml");
        files.insert(Path::new(DIR).join(&name), format!("{HEADER}{}", yaml::text(&definition)));
        names.push(name);
    }
    names.sort();
    let list = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": names,
    });
    files.insert(
        Path::new(DIR).join("kustomization.yaml"),
        format!("{HEADER}{}", yaml::text(&list)),
    );
    files.insert(PathBuf::from(TABLE), resources::table()?);
    Ok(files)
}

/// Files of the folder that would not be written.
fn left_over(root: &Path, files: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    let Ok(entries) = fs::read_dir(root.join(DIR)) else { return Ok(left) };
    for entry in entries {
        let path = Path::new(DIR).join(entry?.file_name());
        if !files.contains_key(&path) {
            left.push(path);
        }
    }
    left.sort();
    Ok(left)
}

/// The lines in which a file differs from what would be written.
fn difference(path: &Path, found: &str, wanted: &str) -> Vec<String> {
    if found == wanted {
        return Vec::new();
    }
    let (found, wanted): (Vec<_>, Vec<_>) = (found.lines().collect(), wanted.lines().collect());
    let same = found.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let rest = found.len().min(wanted.len()) - same;
    let tail =
        found.iter().rev().zip(wanted.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let mut lines = vec![format!("{}:{}: is stale", path.display(), same + 1)];
    let changed = |sign: char, of: &[&str]| -> Vec<String> {
        of[same..of.len() - tail].iter().map(|line| format!("  {sign} {line}")).collect()
    };
    let all: Vec<_> = changed('-', &found).into_iter().chain(changed('+', &wanted)).collect();
    let more = all.len().saturating_sub(SHOWN);
    lines.extend(all.into_iter().take(SHOWN));
    if more > 0 {
        lines.push(format!("  and {more} more lines"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_shown_with_its_difference() {
        let lines = difference(Path::new("a"), "1\n2\n3\n4\n", "1\n2\nx\n4\n");
        assert_eq!(lines, ["a:3: is stale", "  - 3", "  + x"]);
        assert_eq!(difference(Path::new("a"), "1\n", "1\n2\n"), ["a:2: is stale", "  + 2"]);
        assert!(difference(Path::new("a"), "1\n", "1\n").is_empty());
    }

    #[test]
    fn the_files_of_this_tree_are_as_the_types_say() {
        let stale = check(&root()).unwrap();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }
}
