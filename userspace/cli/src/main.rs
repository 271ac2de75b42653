//! `fairlead`: the command line, what istioctl is to Istio. One file per subcommand in
//! `commands/`; what they share in `output/`, `kubectl.rs` and `manifests.rs`.
#![forbid(unsafe_code)]

mod commands;
mod kubectl;
mod manifests;
mod output;

use std::process::ExitCode;

use clap::Parser;

/// Exit code for wrong usage and for what could not be done at all.
const USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  fairlead install                   the mesh, into the cluster of your current context
  fairlead validate config/          what a node would say about these files
  fairlead validate --help           more of them";

/// Works with a Fairlead mesh.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fairlead: {error:#}");
            ExitCode::from(USAGE)
        }
    }
}
