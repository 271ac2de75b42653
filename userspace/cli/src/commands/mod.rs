//! The subcommands.

mod validate;

use std::process::ExitCode;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check configuration files before they are used.
    Validate(validate::Validate),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// It could not be done at all.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Validate(command) => command.run(),
        }
    }
}
