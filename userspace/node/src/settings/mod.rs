//! Settings of the daemon: what differs between nodes. What the mesh does is configuration, and
//! comes from the resources.
//!
//! Each setting can be a flag, an environment variable or a line of the settings file, in this
//! order; [`options`] has them as people write them, this module as the daemon uses them.

mod options;
mod span;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use options::{LogFormat, Options, UnknownNetns};

/// Most threads that carry traffic.
const MAX_WORKERS: usize = 256;
/// Shortest certificate life: below it renewal would be all that the node does.
const MIN_TTL: Duration = Duration::from_secs(5);
/// Longest certificate life that a node asks for.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest wait for connections at the end.
const MAX_DRAIN: Duration = Duration::from_secs(3600);

/// Most connections that can be asked for.
const MAX_CONNECTIONS: usize = 10_000_000;
/// Most flows that can be asked for: each is a kernel map entry.
const MAX_FLOWS: u32 = 1 << 22;

/// Settings, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node: pods with this `spec.nodeName` are local.
    pub node: String,
    /// Directory of YAML.
    pub config_dir: PathBuf,
    /// Certificates.
    pub identity: IdentitySettings,
    /// Kernel.
    pub capture: CaptureSettings,
    /// Admin API.
    pub admin: SocketAddr,
    /// Threads and the end.
    pub run: RunSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySettings {
    /// Directory of the CA.
    pub ca_dir: PathBuf,
    /// Life of a certificate.
    pub ttl: Duration,
}

/// How traffic is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSettings {
    /// Directory on a bpf file system where programs and maps are pinned.
    pub state_dir: PathBuf,
    /// The cgroup (v2) under which pods live; `None`: the root of the mounted hierarchy.
    pub cgroup_root: Option<PathBuf>,
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
        let Options { node, config_dir, identity, capture, admin, run, log, settings: _ } = options;
        let node = match node {
            Some(name) => name,
            None => host_name().ok_or_else(|| {
                value("--node", "the host has no name to take as a default; pass --node NAME")
            })?,
        };
        let settings = Self {
            node,
            config_dir: config_dir.unwrap_or_else(|| "/etc/fairlead/config".into()),
            identity: IdentitySettings {
                ca_dir: identity.ca_dir.unwrap_or_else(|| "/var/lib/fairlead/ca".into()),
                ttl: identity.cert_ttl.map_or(Duration::from_secs(3600), |s| s.0),
            },
            capture: CaptureSettings {
                state_dir: capture.state_dir.unwrap_or_else(|| "/sys/fs/bpf/fairlead".into()),
                cgroup_root: capture.cgroup_root,
                unknown_netns: capture.unknown_netns.unwrap_or_default(),
                max_flows: capture.max_flows.unwrap_or(fairlead_capture::DEFAULT_MAX_FLOWS),
                kernel_log: capture.kernel_log.unwrap_or(false),
            },
            admin: admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 15000))),
            run: RunSettings {
                workers: run.workers.unwrap_or(1),
                drain: run.drain.map_or(Duration::from_secs(30), |s| s.0),
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
        for (setting, path) in [
            ("--config-dir", &self.config_dir),
            ("--ca-dir", &self.identity.ca_dir),
            ("--state-dir", &self.capture.state_dir),
        ] {
            if path.as_os_str().is_empty() {
                return Err(value(setting, "the path is empty"));
            }
        }
        Ok(())
    }
}

fn host_name() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?;
    let name = text.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
