//! Layout rules: a fixed top level, files with a purpose and a bounded length, `unsafe` only where
//! the kernel is spoken to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// What the top level may hold.
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "clippy.toml",
    "docs",
    "ebpf",
    "fuzz",
    "manifests",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "target",
    "tests",
    "userspace",
    "xtask",
];

/// Code lines (neither blank nor comment) that a file may have; 400 is what to aim for.
const LONGEST: usize = 600;

/// Where `unsafe` may be written.
const UNSAFE_ROOMS: &[&str] = &["userspace/capture/", "ebpf/"];

/// Folders that hold no sources of ours.
const SKIPPED: &[&str] = &["target", ".git", "corpus", "artifacts"];

/// What is broken, in words.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !TOP.contains(&name.as_str()) {
            broken.push(format!("{name}: the top level is fixed (see docs/architecture.md)"));
        }
    }
    let mut files = Vec::new();
    sources(root, &mut files)?;
    for path in files {
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        broken.extend(judge(&shown, &fs::read_to_string(&path)?));
    }
    Ok(broken)
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.iter().any(|s| name == *s) {
                sources(&entry.path(), into)?;
            }
        } else if entry.path().extension().is_some_and(|e| e == "rs") {
            into.push(entry.path());
        }
    }
    Ok(())
}

/// What one source file breaks.
fn judge(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    // Sibling test files are announced by the module that they test.
    let tests = path.ends_with("tests.rs");
    if !tests && !text.trim_start().starts_with("//!") {
        broken.push(format!("{path}: begins without a `//!` that says what it is for"));
    }
    let code = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//"));
    let length = code.count();
    if length > LONGEST {
        broken.push(format!("{path}: {length} lines of code; split it (at most {LONGEST})"));
    }
    let free = UNSAFE_ROOMS.iter().any(|room| path.starts_with(room));
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("//") || line.contains('"') {
            continue;
        }
        let word = |word: &str| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
        };
        if !free && word("unsafe") {
            broken.push(format!("{path}:{}: `unsafe` outside capture and ebpf", number + 1));
        }
        if !free && word("unsafe_code") && (line.contains("allow") || line.contains("expect")) {
            broken.push(format!("{path}:{}: allows unsafe code", number + 1));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_named() {
        assert!(judge("userspace/x/src/a.rs", "//! A.\nfn a() {}\n").is_empty());
        assert!(judge("userspace/x/src/a.rs", "fn a() {}\n")[0].contains("//!"));
        let danger = "//! A.\nfn a() { unsafe { b() } }\n";
        assert!(judge("userspace/x/src/a.rs", danger)[0].contains("a.rs:2"));
        assert!(judge("userspace/capture/src/a.rs", danger).is_empty());
        let long = format!("//! A.\n{}", "let a = 1;\n".repeat(LONGEST + 1));
        assert!(judge("a.rs", &long)[0].contains("split it"));
    }
}
