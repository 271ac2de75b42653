//! Settings of the daemon: what differs between nodes. What the mesh does is configuration, and
//! comes from the resources.
//!
//! Each setting can be a flag, an environment variable or a line of the settings file, in this
//! order; [`options`] has them as people write them, this module as the daemon uses them.

mod address;
mod options;
mod span;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use options::{ControllerOptions, IdentityOptions};

pub use address::Address;
pub use options::{CheckOutput, LogFormat, Options, Unanswered, UnknownNetns};

/// Most threads that carry traffic.
const MAX_WORKERS: usize = 256;
/// Shortest certificate life: below it renewal would be all that the node does.
const MIN_TTL: Duration = Duration::from_secs(5);
/// Longest certificate life that a node asks for.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest wait for connections at the end.
const MAX_DRAIN: Duration = Duration::from_secs(3600);
/// Longest time for which a daemon that has handed over stays.
const MAX_LINGER: Duration = Duration::from_secs(3600);

/// Most connections that can be asked for.
const MAX_CONNECTIONS: usize = 10_000_000;
/// Most flows that can be asked for: each is a kernel map entry.
const MAX_FLOWS: u32 = 1 << 22;

/// Settings, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node: pods with this `spec.nodeName` are local.
    pub node: String,
    /// Where configuration comes from.
    pub source: Source,
    /// Certificates.
    pub identity: IdentitySettings,
    /// Kernel.
    pub capture: CaptureSettings,
    /// How pods are found that do not say themselves where they are.
    pub pods: Option<PodSettings>,
    /// Admin API.
    pub admin: SocketAddr,
    /// Where metrics and probes are served beside it.
    pub metrics: Option<SocketAddr>,
    /// Where this daemon hands over to one that is started beside it.
    pub handover: Option<PathBuf>,
    /// Where it tells probes how it stands, whoever else has the addresses.
    pub instance: Option<PathBuf>,
    /// Threads and the end.
    pub run: RunSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// Where configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML.
    Directory(PathBuf),
    /// A controller.
    Controller(ControllerSettings),
}

/// A controller, and what is kept of what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSettings {
    /// The controller.
    pub service: ServiceSettings,
    /// Directory of what is kept.
    pub state_dir: PathBuf,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Namespace of the mesh's settings.
    pub root_namespace: String,
    /// Connections to unknown private addresses while it does not answer.
    pub unanswered: Unanswered,
}

/// A service of the control plane, and how it and this node recognize each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Where it is.
    pub address: Address,
    /// Certificates by which it is recognized.
    pub ca_root: PathBuf,
    /// The token by which it recognizes this node.
    pub token_file: PathBuf,
}

/// Who certifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A CA in a directory.
    Directory(PathBuf),
    /// A service.
    Remote {
        /// Which.
        service: ServiceSettings,
        /// Whether it is another one than the controller: then its own root counts beside the
        /// bundle that the controller hands out.
        foreign: bool,
        /// Where certificates with their keys are kept.
        kept: Option<PathBuf>,
    },
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySettings {
    /// Who certifies.
    pub authority: Authority,
    /// Life of a certificate.
    pub ttl: Duration,
}

/// How pods are found: by what the CNI plugin tells, and by the processes of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// Where the CNI plugin asks.
    pub cni_socket: PathBuf,
    /// The node's `/proc`.
    pub proc: PathBuf,
}

/// How traffic is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSettings {
    /// Directory on a bpf file system where programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The cgroup (v2) under which pods live; `None`: the root of the mounted hierarchy.
    pub cgroup_root: Option<PathBuf>,
    /// The cgroup of all pods; `None`: where kubelet makes it below the root.
    pub pods_cgroup: Option<PathBuf>,
    /// What happens to network namespaces that nobody has spoken for.
    pub unknown_netns: UnknownNetns,
    /// Connections on their way between kernel and daemon.
    pub max_flows: u32,
    /// Whether the kernel programs log.
    pub kernel_log: bool,
}

/// Threads and the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    /// Threads that carry traffic.
    pub workers: usize,
    /// How long connections may go on after SIGTERM.
    pub drain: Duration,
    /// How long a daemon that has handed over stays at most when it has drained: until somebody ends
    /// it, or its successor ends.
    pub linger: Duration,
    /// Connections carried at the same time.
    pub max_connections: usize,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level or tracing directives: `info`, `info,fairlead_proxy=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// Instead of MeshConfig's `accessLogFile`.
    pub access_log_file: Option<String>,
}

/// Why the daemon cannot start with these settings; each says what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The settings file cannot be read.
    #[error("settings file {}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A value is out of its range.
    #[error("{setting}: {message}")]
    Value {
        /// As a flag.
        setting: &'static str,
        /// What is wrong, and what is allowed.
        message: String,
    },
}

fn value(setting: &'static str, message: impl Into<String>) -> SettingsError {
    SettingsError::Value { setting, message: message.into() }
}

impl Settings {
    /// Completes options by those of the settings file, when one is named, and by defaults.
    ///
    /// # Errors
    /// [`SettingsError`]: the file or a value.
    pub fn resolve(options: Options) -> Result<Self, SettingsError> {
        let options = match &options.settings {
            None => options,
            Some(path) => {
                let file = Options::read(path)?;
                options.over(file)
            }
        };
        let Options {
            node,
            config_dir,
            controller,
            identity,
            capture,
            admin,
            metrics_address,
            run,
            log,
            settings: _,
            check: _,
            clean: _,
            output: _,
        } = options;
        let node = match node.or_else(|| std::env::var("NODE_NAME").ok()) {
            Some(name) => name,
            None => host_name().ok_or_else(|| {
                value("--node", "the host has no name to take as a default; pass --node NAME")
            })?,
        };
        let (source, authority) = sources(config_dir, controller, &identity)?;
        let in_cluster = matches!(source, Source::Controller(_));
        let cni_socket =
            capture.cni_socket.or_else(|| in_cluster.then(|| fairlead_wire::cni::SOCKET.into()));
        let proc = capture.proc.unwrap_or_else(|| "/proc".into());
        let settings = Self {
            node,
            source,
            pods: cni_socket.map(|cni_socket| PodSettings { cni_socket, proc }),
            identity: IdentitySettings {
                authority,
                ttl: identity.cert_ttl.map_or(Duration::from_secs(3600), |s| s.0),
            },
            capture: CaptureSettings {
                pin_dir: capture.pin_dir.unwrap_or_else(|| "/sys/fs/bpf/fairlead".into()),
                cgroup_root: capture.cgroup_root,
                pods_cgroup: capture.pods_cgroup,
                unknown_netns: capture.unknown_netns.unwrap_or_default(),
                max_flows: capture.max_flows.unwrap_or(fairlead_capture::DEFAULT_MAX_FLOWS),
                kernel_log: capture.kernel_log.unwrap_or(false),
            },
            admin: admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 15000))),
            metrics: metrics_address,
            handover: run
                .handover_socket
                .or_else(|| in_cluster.then(|| crate::handover::SOCKET.into())),
            instance: run.instance_socket,
            run: RunSettings {
                workers: run.workers.unwrap_or(1),
                drain: run.drain.map_or(Duration::from_secs(30), |s| s.0),
                linger: run.linger.map_or(Duration::ZERO, |s| s.0),
                max_connections: run.max_connections.unwrap_or(250_000),
            },
            log: LogSettings {
                level: log.log_level.unwrap_or_else(|| "info".into()),
                format: log.log_format.unwrap_or_default(),
                access_log_file: log.access_log_file,
            },
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.node.is_empty() || self.node.len() > 253 {
            return Err(value("--node", "a node name has 1 to 253 characters"));
        }
        if !self.admin.ip().is_loopback() {
            let message = format!(
                "{} is not a loopback address; the admin API can change the log level and shows \
                 who talks to whom, so it stays on 127.0.0.0/8 or ::1",
                self.admin
            );
            return Err(value("--admin", message));
        }
        if self.run.workers == 0 || self.run.workers > MAX_WORKERS {
            return Err(value("--workers", format!("1 to {MAX_WORKERS}")));
        }
        if !(MIN_TTL..=MAX_TTL).contains(&self.identity.ttl) {
            return Err(value("--cert-ttl", "5s to 2160h"));
        }
        if self.run.max_connections == 0 || self.run.max_connections > MAX_CONNECTIONS {
            return Err(value("--max-connections", format!("1 to {MAX_CONNECTIONS}")));
        }
        if self.capture.max_flows == 0 || self.capture.max_flows > MAX_FLOWS {
            return Err(value("--max-flows", format!("1 to {MAX_FLOWS}")));
        }
        if self.run.drain > MAX_DRAIN {
            return Err(value("--drain", "1h at most"));
        }
        if self.run.linger > MAX_LINGER {
            return Err(value("--linger", "1h at most"));
        }
        if self.metrics == Some(self.admin) {
            return Err(value("--metrics-address", "this is the address of --admin"));
        }
        let mut paths = vec![("--pin-dir", &self.capture.pin_dir)];
        match &self.source {
            Source::Directory(dir) => paths.push(("--config-dir", dir)),
            Source::Controller(controller) => {
                paths.push(("--state-dir", &controller.state_dir));
                let name = &controller.cluster_id;
                if name.is_empty() || name.len() > 253 {
                    return Err(value("--cluster-id", "1 to 253 characters"));
                }
            }
        }
        match &self.identity.authority {
            Authority::Directory(dir) => paths.push(("--ca-dir", dir)),
            Authority::Remote { service, .. } => {
                paths.push(("--ca-root", &service.ca_root));
                paths.push(("--token-file", &service.token_file));
            }
        }
        for (setting, path) in paths {
            if path.as_os_str().is_empty() {
                return Err(value(setting, "the path is empty"));
            }
        }
        Ok(())
    }
}

/// Where configuration and certificates come from.
fn sources(
    config_dir: Option<PathBuf>,
    controller: ControllerOptions,
    identity: &IdentityOptions,
) -> Result<(Source, Authority), SettingsError> {
    let state_dir = controller.state_dir.unwrap_or_else(|| "/var/lib/fairlead".into());
    let ca_root = controller.ca_root.unwrap_or_else(|| "/var/run/fairlead/ca/root-cert.pem".into());
    let token_file =
        controller.token_file.unwrap_or_else(|| "/var/run/secrets/tokens/istio-token".into());
    let service = |address: &Address| ServiceSettings {
        address: address.clone(),
        ca_root: ca_root.clone(),
        token_file: token_file.clone(),
    };
    if identity.ca_dir.is_some() && identity.ca_address.is_some() {
        let message = "--ca-dir names another certificate authority: one of the two";
        return Err(value("--ca-address", message));
    }
    let remote = identity.ca_address.as_ref().or(controller.address.as_ref());
    let authority = match (&identity.ca_dir, remote) {
        (None, Some(address)) => Authority::Remote {
            service: service(address),
            foreign: controller.address.as_ref() != Some(address),
            kept: controller
                .keep_certificates
                .unwrap_or(true)
                .then(|| state_dir.join("identities")),
        },
        (dir, _) => {
            Authority::Directory(dir.clone().unwrap_or_else(|| "/var/lib/fairlead/ca".into()))
        }
    };
    let source = match &controller.address {
        None => Source::Directory(config_dir.unwrap_or_else(|| "/etc/fairlead/config".into())),
        Some(_) if config_dir.is_some() => {
            let message = "--config-dir is given too: configuration comes from one of the two";
            return Err(value("--controller", message));
        }
        Some(address) => Source::Controller(ControllerSettings {
            service: service(address),
            state_dir,
            cluster_id: controller.cluster_id.unwrap_or_else(|| "Kubernetes".into()),
            root_namespace: controller.root_namespace.unwrap_or_else(|| "istio-system".into()),
            unanswered: controller.unanswered.unwrap_or_default(),
        }),
    };
    Ok((source, authority))
}

fn host_name() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?;
    let name = text.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
