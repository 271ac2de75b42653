//! `docs/rows.md` claims features by naming scenarios: each one named has to exist.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Scenarios that `docs/rows.md` names and nobody wrote.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("docs/rows.md")).context("docs/rows.md")?;
    let mut broken = Vec::new();
    for (line, name) in named(&text) {
        let Some((module, function)) = name.split_once("::") else { continue };
        let file = root.join(format!("tests/scenarios/{module}.rs"));
        let source = fs::read_to_string(&file).unwrap_or_default();
        if !source.contains(&format!("#[test]\nfn {function}(")) {
            broken.push(format!("docs/rows.md:{line}: there is no scenario {name}"));
        }
    }
    Ok(broken)
}

/// Names in backquotes with two colons, each with its line number.
fn named(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(number, line)| {
        let quoted = line.split('`').skip(1).step_by(2);
        quoted.filter(|name| name.contains("::")).map(move |name| (number + 1, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        let text = "| 1.1 | `x` | `capture::a`, `l4::b` |\nplain\n`c::d`";
        let found: Vec<_> = named(text).collect();
        assert_eq!(found, [(1, "capture::a"), (1, "l4::b"), (3, "c::d")]);
    }

    #[test]
    fn an_unwritten_scenario_is_told() {
        let dir = std::env::temp_dir().join(format!("fl-rows-{}", std::process::id()));
        fs::create_dir_all(dir.join("docs")).unwrap();
        fs::create_dir_all(dir.join("tests/scenarios")).unwrap();
        fs::write(dir.join("docs/rows.md"), "| 1 | `a::is` |\n| 2 | `a::is_not` |\n").unwrap();
        fs::write(dir.join("tests/scenarios/a.rs"), "#[test]\nfn is() {}\n").unwrap();
        let broken = check(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(broken, ["docs/rows.md:2: there is no scenario a::is_not"]);
    }
}
