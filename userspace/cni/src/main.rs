//! `fairlead-cni`: what the container runtime runs, and what installs it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_cni::{install, plugin};

fn main() -> ExitCode {
    // As the specification has it, the variable says that this is a call of a container runtime.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return plugin::main();
    }
    match install::run(install::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairlead-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}
