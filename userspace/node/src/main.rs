//! `fairlead-node`: the node daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_node::daemon;
use fairlead_node::settings::{Options, Settings};

fn main() -> ExitCode {
    let outcome = Settings::resolve(Options::parse())
        .map_err(anyhow::Error::from)
        .and_then(|settings| daemon::run(&settings));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairlead-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
