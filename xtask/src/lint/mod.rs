//! `cargo xtask lint`: format, clippy, and the rules of the design that no compiler knows.

mod dependencies;
mod layout;
mod rows;

use anyhow::{Result, bail};

use crate::workspace::{cargo, heading, root, step};
use crate::{ebpf, manifests};

/// Checks format, clippy (warnings are errors), dependency rules and layout rules.
///
/// Examples:
///   cargo xtask lint
///   cargo xtask lint --rules
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Only dependency and layout rules: a second instead of minutes
    #[arg(long)]
    rules: bool,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    heading("dependency and layout rules");
    let mut broken = dependencies::check()?;
    broken.extend(layout::check(&root())?);
    broken.extend(rows::check(&root())?);
    broken.extend(manifests::check(&root())?);
    for rule in &broken {
        println!("{rule}");
    }
    if !args.rules {
        step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
        let programs = root().join("ebpf/programs");
        step("format of the kernel programs", cargo(&["fmt", "--check"]).current_dir(programs))?;
        ebpf::ensure_built()?;
        let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step("clippy", &mut cargo(&clippy))?;
    }
    if !broken.is_empty() {
        bail!("{} rules are broken", broken.len());
    }
    println!("lint: nothing to complain about");
    Ok(())
}
