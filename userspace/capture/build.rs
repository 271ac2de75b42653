//! Puts the eBPF object where `object.rs` includes it from, so that the daemon needs no file beside
//! it. The object itself is built by `cargo xtask build-ebpf`: it needs another compiler.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

/// Overrides where the object is looked for.
const OBJECT_VARIABLE: &str = "FAIRLEAD_BPF_OBJECT";
/// Where `cargo xtask build-ebpf` puts it, below the target directory.
const OBJECT_IN_TARGET: &str = "ebpf/fairlead.bpf.o";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=cargo did not set OUT_DIR");
        return ExitCode::FAILURE;
    };
    let Some(object) = find(&out) else {
        println!(
            "cargo::error=the eBPF object is missing: run `cargo xtask build-ebpf` first (with the \
             same CARGO_TARGET_DIR), or set {OBJECT_VARIABLE} to a built object"
        );
        return ExitCode::FAILURE;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out.join("fairlead.bpf.o")) {
        println!("cargo::error=copying {}: {error}", object.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The object, from the variable or from the target directory above `out`, whatever profile and
/// target triple lie between.
fn find(out: &Path) -> Option<PathBuf> {
    if let Some(path) = env::var_os(OBJECT_VARIABLE) {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    // A missing file is watched too, or cargo would not ask again once it is there.
    let candidates = out.ancestors().skip(4).take(2).map(|dir| dir.join(OBJECT_IN_TARGET));
    for candidate in candidates.clone() {
        println!("cargo::rerun-if-changed={}", candidate.display());
    }
    candidates.into_iter().find(|path| path.is_file())
}
