//! kubectl on a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::system;

/// kubectl with a cluster's credentials.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// kubectl for a kubeconfig.
    #[must_use]
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The command, for callers that want its input and output themselves.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Not through a proxy, which the machine may be told to use for the Internet.
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        command
    }

    /// Runs it to its end; what it printed.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        system::output(&mut self.command(args))
    }

    /// Applies YAML on the server's side.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        system::output_with(&mut self.command(&args), yaml.as_bytes())
    }

    /// Deletes what YAML names; what is not there does not matter.
    ///
    /// # Errors
    /// The server does not do it.
    pub fn delete(&self, yaml: &str) -> Result<String> {
        let args = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
        system::output_with(&mut self.command(&args), yaml.as_bytes())
    }

    /// An object or a list as JSON, from such as `get pods -n x`.
    ///
    /// # Errors
    /// There is no such thing.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(&[args, &["-o", "json"]].concat())?)?)
    }
}
