//! `cargo xtask clean`: removes what an interrupted run left behind.

use anyhow::Result;
use fairlead_tests::run::{self, Which};

/// Removes namespaces, cgroups, pins and files of interrupted runs and of `demo --keep`, and all
/// clusters.
///
/// Examples:
///   cargo xtask clean
///   cargo xtask clean --dead
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Leave what `demo --keep` kept, and the clusters of `cluster up`
    #[arg(long)]
    dead: bool,
    /// Say nothing
    #[arg(long)]
    quiet: bool,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    crate::tools::require_root("clean")?;
    let which = if args.dead { Which::Dead } else { Which::DeadAndKept };
    let mut removed = run::clean(which)?;
    let clusters = fairlead_cluster::cluster::clean(!args.dead)?;
    removed.extend(clusters.iter().map(|name| format!("cluster {name}")));
    if args.quiet {
        return Ok(());
    }
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(())
}
