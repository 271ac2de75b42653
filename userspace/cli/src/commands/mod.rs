//! The subcommands.

mod install;
mod uninstall;
mod validate;

use std::process::ExitCode;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check configuration files before they are used.
    Validate(validate::Validate),
    /// Install the mesh into a cluster, or upgrade it.
    Install(install::Install),
    /// Take the mesh off a cluster, and everything of it off the nodes.
    Uninstall(uninstall::Uninstall),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// It could not be done at all.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Validate(command) => command.run(),
            Self::Install(command) => command.run(),
            Self::Uninstall(command) => command.run(),
        }
    }
}
