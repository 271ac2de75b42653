//! `fairlead-node`: the node daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_node::{clean, daemon};
use fairlead_node::settings::{Options, Settings};

fn main() -> ExitCode {
    let options = Options::parse();
    let cleans = options.clean;
    match Settings::resolve(options) {
        Ok(settings) if cleans => clean::run(&settings),
        Ok(settings) => daemon::run(&settings),
        Err(error) => {
            eprintln!("fairlead-node: {error}");
            ExitCode::FAILURE
        }
    }
}
