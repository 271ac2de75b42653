//! The installer: a container of the DaemonSet, beside the node daemon.
//!
//! `install` puts the plugin and what it needs to know on the node, enters the network's chain, and
//! stays there: when somebody rewrites the chain or puts another one before it, it is entered again.
//! SIGTERM ends it and takes nothing away: between two pods of a DaemonSet the plugin has to go on,
//! or pods would start outside of the mesh. `uninstall` takes everything away.

pub mod chain;
pub mod conflist;
mod files;
#[cfg(test)]
mod tests;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::access::Access;
use crate::plugin::TYPE;
use chain::Entered;

const EXAMPLES: &str = "\
Examples:
  # In the DaemonSet, with the node's directories mounted below /host:
  fairlead-cni install --exclude-namespace calico-system

  # Readiness of that container:
  fairlead-cni check --exclude-namespace calico-system

  # When Fairlead leaves the node for good:
  fairlead-cni uninstall

  # On the node itself:
  fairlead-cni install --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin \\
      --state-dir /var/lib/fairlead/cni --service-account /etc/fairlead/cni-account \\
      --api-server https://10.0.0.1:6443

With CNI_COMMAND in the environment it is the CNI plugin, and takes no arguments.";

/// Name of the directories that are the mesh's alone.
const OWN: &str = "fairlead";

/// Fairlead's CNI plugin, and what puts it on a node.
#[derive(Clone, Debug, Parser)]
#[command(name = "fairlead-cni", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Puts the plugin on the node and keeps it in the chain; ends on SIGTERM and leaves it there
    Install(Install),
    /// Whether the plugin is on the node and in the chain
    Check(Install),
    /// Takes the plugin out of the chain and off the node
    Uninstall(Uninstall),
}

#[derive(Clone, Debug, Args)]
struct Uninstall {
    #[command(flatten)]
    places: Places,
    /// The directory of the node daemon's sockets, which is removed if it is empty
    #[arg(long, value_name = "DIR", default_value = "/host/run/fairlead")]
    run_dir: PathBuf,
    /// Stay until SIGTERM when it is done: a DaemonSet starts again what ends
    #[arg(long)]
    stay: bool,
}

/// Where things are, as this process sees them.
#[derive(Clone, Debug, Args)]
struct Places {
    /// The runtime's directory of network configurations
    #[arg(long, value_name = "DIR", default_value = "/host/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The runtime's directory of plugins
    #[arg(long, value_name = "DIR", default_value = "/host/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where the plugin's way to the API server is kept
    #[arg(long, value_name = "DIR", default_value = "/host/var/lib/fairlead/cni")]
    state_dir: PathBuf,
}

impl Places {
    fn binary(&self) -> PathBuf {
        self.cni_bin_dir.join(TYPE)
    }

    fn access(&self) -> PathBuf {
        self.state_dir.join("api.json")
    }
}

#[derive(Clone, Debug, Args)]
struct Install {
    #[command(flatten)]
    places: Places,
    /// The state directory as the node has it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead/cni")]
    host_state_dir: PathBuf,
    /// Where the node daemon listens, as the node has it
    #[arg(long, value_name = "PATH", default_value = fairlead_wire::cni::SOCKET)]
    socket: PathBuf,
    /// Fairlead's own namespace: its pods are never held up
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "fairlead-system")]
    namespace: String,
    /// A namespace whose pods start also when neither the daemon nor the API server can say what
    /// they are, as those of kube-system do; may be given several times
    #[arg(long = "exclude-namespace", value_name = "NAME")]
    exclude_namespaces: Vec<String>,
    /// Have CNI's STATUS fail, and so the node be NotReady, while the daemon does not answer
    #[arg(long)]
    status_requires_daemon: bool,
    /// Address of the API server as the node reaches it; may be given several times [default:
    /// that of the environment: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT]
    #[arg(long = "api-server", value_name = "URL")]
    api_servers: Vec<String>,
    /// Directory of the service account: `token` and `ca.crt`
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account: PathBuf,
}

/// Runs a command of a person or a DaemonSet.
///
/// # Errors
/// What could not be done, and where.
pub fn run(options: Options) -> anyhow::Result<()> {
    match options.command {
        Command::Install(install) => watch::stay(&install),
        Command::Check(install) => check(&install),
        Command::Uninstall(Uninstall { places, run_dir, stay }) => {
            uninstall(&places, &run_dir)?;
            if stay { watch::until_told_to_end() } else { Ok(()) }
        }
    }
}

impl Install {
    /// Our entry in the chain.
    fn entry(&self) -> String {
        let mut entry = json!({
            "type": TYPE,
            "socket": self.socket,
            "api": self.host_state_dir.join("api.json"),
            "namespace": self.namespace,
        });
        if !self.exclude_namespaces.is_empty() {
            entry["excludeNamespaces"] = json!(self.exclude_namespaces);
        }
        if self.status_requires_daemon {
            entry["statusRequiresDaemon"] = json!(true);
        }
        entry.to_string()
    }

    fn servers(&self) -> anyhow::Result<Vec<String>> {
        if !self.api_servers.is_empty() {
            return Ok(self.api_servers.clone());
        }
        let var = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        let (Some(host), Some(port)) =
            (var("KUBERNETES_SERVICE_HOST"), var("KUBERNETES_SERVICE_PORT"))
        else {
            bail!("no API server: this is no pod; name one with --api-server https://HOST:PORT");
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Ok(vec![format!("https://{host}:{port}")])
    }

    /// Copies this program to where the runtime looks for plugins.
    fn put_binary(&self) -> anyhow::Result<()> {
        let path = self.places.binary();
        let own = std::fs::read("/proc/self/exe").context("reading the own program")?;
        files::replace(&path, &own, None, 0o755)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    /// Writes the way to the API server; true if it was another one.
    fn put_access(&self) -> anyhow::Result<bool> {
        let read = |name: &str| {
            let path = self.service_account.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let access = Access {
            servers: self.servers()?,
            ca: read("ca.crt")?,
            token: read("token")?.trim().to_owned(),
        };
        let path = self.places.access();
        let dir = &self.places.state_dir;
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let text = serde_json::to_vec(&access)?;
        files::replace(&path, &text, None, 0o600)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Brings everything to what it should be. The chain comes last: whatever it names is there.
    /// `binary_written`: whether this process has put its program there.
    fn put_all(&self, binary_written: &mut bool) -> anyhow::Result<Entered> {
        if !*binary_written || !is_own(&self.places.binary()) {
            self.put_binary()?;
            *binary_written = true;
        }
        if self.put_access()? {
            say("the way to the API server is written");
        }
        let dir = &self.places.cni_conf_dir;
        let entered = chain::enter(dir, &self.entry())
            .with_context(|| format!("entering the chain in {}", dir.display()))?;
        match &entered {
            Entered::In { file, changed: true } => {
                say(&format!("entered the chain of {}", file.display()));
            }
            Entered::In { .. } => {}
            Entered::NoNetwork => {
                say(&format!("{} has no network configuration yet: waiting", dir.display()));
            }
        }
        Ok(entered)
    }
}

/// Whether that file is still the program that was put there; its size is enough to tell.
fn is_own(path: &Path) -> bool {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).ok();
    size(path).is_some() && size(path) == size(Path::new("/proc/self/exe"))
}

fn say(what: &str) {
    eprintln!("fairlead-cni: {what}");
}

fn check(install: &Install) -> anyhow::Result<()> {
    let binary = install.places.binary();
    anyhow::ensure!(binary.is_file(), "{} is not there", binary.display());
    let access = install.places.access();
    Access::read(&access).with_context(|| format!("reading {}", access.display()))?;
    let dir = &install.places.cni_conf_dir;
    anyhow::ensure!(
        chain::is_entered(dir, &install.entry())?,
        "the plugin is not at the end of the chain that the runtime takes in {}",
        dir.display()
    );
    Ok(())
}

fn uninstall(places: &Places, run_dir: &Path) -> anyhow::Result<()> {
    let dir = &places.cni_conf_dir;
    // The chain first: no runtime looks for a plugin that is gone.
    let left =
        chain::leave(dir).with_context(|| format!("leaving the chain in {}", dir.display()))?;
    let access = places.access();
    let mut removed = files::remove(&access)
        .or_else(missing_dir)
        .with_context(|| format!("removing {}", access.display()))?;
    remove_empty(&places.state_dir);
    // The node daemon's, around it.
    if let Some(around) = places.state_dir.parent().filter(|dir| dir.ends_with(OWN)) {
        remove_empty(around);
    }
    remove_empty(run_dir);
    let binary = places.binary();
    removed |= files::remove(&binary)
        .or_else(missing_dir)
        .with_context(|| format!("removing {}", binary.display()))?;
    say(if left || removed { "uninstalled" } else { "there was nothing to uninstall" });
    Ok(())
}

/// Removes a directory in which nothing is left. Where there is something, where it is not there, or
/// where it was mounted here, it stays as it is.
fn remove_empty(dir: &Path) {
    let _ = std::fs::remove_dir(dir);
}

fn missing_dir(error: std::io::Error) -> std::io::Result<bool> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(false) } else { Err(error) }
}
