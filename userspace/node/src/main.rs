//! `fairlead-node`: the node daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_node::daemon;
use fairlead_node::settings::{Options, Settings};

fn main() -> ExitCode {
    match Settings::resolve(Options::parse()) {
        Ok(settings) => daemon::run(&settings),
        Err(error) => {
            eprintln!("fairlead-node: {error}");
            ExitCode::FAILURE
        }
    }
}
