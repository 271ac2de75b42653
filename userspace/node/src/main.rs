//! `fairlead-node`: the node daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_node::instance::Question;
use fairlead_node::settings::{CheckOutput, Options, Settings};
use fairlead_node::{check, clean, daemon};

fn main() -> ExitCode {
    if let Some(question) = Question::from_env() {
        return question.ask();
    }
    let options = Options::parse();
    let (cleans, checks, output) = (options.clean, options.check, options.output);
    match Settings::resolve(options) {
        Ok(settings) if cleans => clean::run(&settings),
        Ok(settings) if checks => check::run(&settings, output == CheckOutput::Json),
        Ok(settings) => daemon::run(&settings),
        Err(error) => {
            eprintln!("fairlead-node: {error}");
            ExitCode::FAILURE
        }
    }
}
