//! kubectl, as this user has it: its configuration, its credentials, its words.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail};

use crate::manifests::SYSTEM;

/// How long a rollout may take.
const ROLLOUT: &str = "--timeout=180s";

/// Which kubectl, and which cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Kubectl {
    /// The kubectl to use; else the first one in PATH.
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    kubectl: PathBuf,

    /// Name of the context of your kubeconfig; else the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Kubectl {
    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.kubectl);
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    fn missing(&self, error: std::io::Error) -> anyhow::Error {
        if error.kind() == ErrorKind::NotFound {
            return anyhow!(
                "{} is not there. Next: install kubectl (https://kubernetes.io/docs/tasks/tools/), \
                 or name one with --kubectl",
                self.kubectl.display()
            );
        }
        anyhow!(error).context(self.kubectl.display().to_string())
    }

    /// Runs it; its output goes where ours does.
    ///
    /// # Errors
    /// It is not there, or fails: what it said was seen.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<()> {
        let status = self.command(args).status().map_err(|error| self.missing(error))?;
        if !status.success() {
            let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            bail!("kubectl {} failed. Next: see what it said above", words.join(" "));
        }
        Ok(())
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// It is not there, or fails: what it said was seen.
    pub(crate) fn read<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<String> {
        let done = self
            .command(args)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| self.missing(error))?;
        if !done.status.success() {
            let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            bail!("kubectl {} failed. Next: see what it said above", words.join(" "));
        }
        String::from_utf8(done.stdout).context("kubectl did not print text")
    }

    /// Whether the cluster has the mesh's namespace.
    ///
    /// # Errors
    /// As of [`Kubectl::read`].
    pub(crate) fn finds_mesh(&self) -> anyhow::Result<bool> {
        let namespace = ["get", "namespace", SYSTEM, "--ignore-not-found", "-o", "name"];
        Ok(!self.read(&namespace)?.trim().is_empty())
    }

    /// Waits until something of the mesh (such as `daemonset/x`) is rolled out.
    ///
    /// # Errors
    /// As of [`Kubectl::run`], also where it takes longer than [`ROLLOUT`] says.
    pub(crate) fn wait_rollout(&self, what: &str) -> anyhow::Result<()> {
        self.run(&["rollout", "status", "-n", SYSTEM, what, ROLLOUT])
    }
}
