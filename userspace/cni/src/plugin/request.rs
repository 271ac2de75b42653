//! What the runtime says: environment and network configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_wire::cni::{MAX_IPS, Sandbox};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::{CniError, Code};

/// The plugin's `type`, which is the name of its binary.
pub const TYPE: &str = "fairlead-cni";
/// Versions of the specification that are spoken, oldest first.
pub const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where the file with the way to the API server is unless the configuration says otherwise.
#[must_use]
pub fn access_path() -> PathBuf {
    "/var/lib/fairlead/cni/api.json".into()
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A container has its network: join.
    Add,
    /// It goes away.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Can the plugin serve ADD?
    Status,
    /// Forget what is not listed.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl Command {
    /// Whether the command is part of that version.
    ///
    /// # Errors
    /// It came later.
    pub fn is_in(self, version: &str) -> Result<(), CniError> {
        let since = match self {
            Self::Add | Self::Del | Self::Version => "0.3.0",
            Self::Check => "0.4.0",
            Self::Status | Self::Gc => "1.1.0",
        };
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        if place(version) >= place(since) {
            return Ok(());
        }
        let details = format!("{self:?} came with {since}, the configuration is of {version}");
        Err(CniError::new(Code::Version, details))
    }
}

/// The variables of the specification.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Env {
    /// Those of this process.
    #[must_use]
    pub fn read() -> Self {
        let get = |name| std::env::var(name).unwrap_or_default();
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            args: get("CNI_ARGS"),
        }
    }

    /// The command.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn command(&self) -> Result<Command, CniError> {
        Ok(match self.command.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            other => {
                let details = format!("CNI_COMMAND is {other:?}");
                return Err(CniError::new(Code::Environment, details));
            }
        })
    }

    /// The container.
    ///
    /// # Errors
    /// It is not said.
    pub fn container_id(&self) -> Result<String, CniError> {
        if self.container_id.is_empty() {
            return Err(CniError::new(Code::Environment, "CNI_CONTAINERID is empty".into()));
        }
        Ok(self.container_id.clone())
    }

    /// A value of `CNI_ARGS`.
    #[must_use]
    pub fn argument(&self, name: &str) -> Option<String> {
        pod_arguments(&self.args).find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    }

    /// The sandbox that the command is about; `None` for a container that is no pod.
    ///
    /// # Errors
    /// It is a pod, and something about it is missing.
    pub fn sandbox(&self, conf: &Conf) -> Result<Option<Sandbox>, CniError> {
        let container_id = self.container_id()?;
        if self.netns.is_empty() {
            return Err(CniError::new(Code::Environment, "CNI_NETNS is empty".into()));
        }
        let (Some(pod_namespace), Some(pod_name)) =
            (self.argument("K8S_POD_NAMESPACE"), self.argument("K8S_POD_NAME"))
        else {
            return Ok(None);
        };
        if pod_namespace.is_empty() || pod_name.is_empty() {
            return Ok(None);
        }
        Ok(Some(Sandbox {
            container_id,
            netns: self.netns.clone(),
            pod_namespace,
            pod_name,
            pod_uid: self.argument("K8S_POD_UID").unwrap_or_default(),
            ips: conf.ips(),
        }))
    }
}

/// `CNI_ARGS`: `A=1;B=2`.
pub fn pod_arguments(args: &str) -> impl Iterator<Item = (&str, &str)> {
    args.split(';').filter_map(|pair| pair.split_once('='))
}

/// The network configuration, as far as it is ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Conf {
    /// `cniVersion`.
    pub version: String,
    /// What the plugins before made.
    pub prev_result: Option<Value>,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// The file with the way to the API server.
    pub api: PathBuf,
    /// Fairlead's own namespace: its pods are never held up.
    pub namespace: String,
    /// Namespaces whose pods start when neither daemon nor API server can say what they are.
    pub exclude_namespaces: Vec<String>,
    /// Whether STATUS fails while the daemon does not answer.
    pub status_requires_daemon: bool,
    valid: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    prev_result: Option<Value>,
    socket: Option<PathBuf>,
    api: Option<PathBuf>,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    exclude_namespaces: Vec<String>,
    #[serde(default)]
    status_requires_daemon: bool,
    #[serde(default, rename = "cni.dev/valid-attachments", deserialize_with = "said")]
    valid: Option<Vec<Attachment>>,
}

/// A list that is there, if only as `null`: libcni writes one without entries so.
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<Attachment>>, D::Error> {
    Option::deserialize(value).map(|list| Some(list.unwrap_or_default()))
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

impl Conf {
    /// Reads standard input.
    ///
    /// # Errors
    /// It is not a network configuration, or of a version that is not spoken.
    pub fn parse(stdin: &str) -> Result<Self, CniError> {
        let written: Written = serde_json::from_str(stdin)
            .map_err(|error| CniError::new(Code::Decode, error.to_string()))?;
        let version = if written.cni_version.is_empty() {
            "0.1.0".to_owned() // As the specification has it.
        } else {
            written.cni_version
        };
        if !VERSIONS.contains(&version.as_str()) {
            let details = format!("{version} is not spoken, but {}", VERSIONS.join(", "));
            return Err(CniError::new(Code::Version, details));
        }
        Ok(Self {
            version,
            prev_result: written.prev_result,
            socket: written.socket.unwrap_or_else(super::default_socket),
            api: written.api.unwrap_or_else(access_path),
            namespace: written.namespace,
            exclude_namespaces: written.exclude_namespaces,
            status_requires_daemon: written.status_requires_daemon,
            valid: written.valid,
        })
    }

    /// The addresses of `prevResult`: `10.0.0.1/24`, one object each since 0.3.0 (with their
    /// `version` until 0.4.0). Those of an interface of the host are none of the container's: where
    /// any interface is said to be in the sandbox, one that is not is the host's.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        let list = |name| {
            let result = self.prev_result.as_ref()?.get(name)?;
            result.as_array().map(Vec::as_slice)
        };
        let (all, interfaces) =
            (list("ips").unwrap_or_default(), list("interfaces").unwrap_or_default());
        let is_inside = |interface: &Value| {
            let sandbox = interface.get("sandbox").and_then(Value::as_str);
            sandbox.is_some_and(|sandbox| !sandbox.is_empty())
        };
        let says_where = interfaces.iter().any(is_inside);
        let is_hosts = |entry: &Value| {
            let index = entry.get("interface").and_then(Value::as_u64);
            let index = index.and_then(|index| usize::try_from(index).ok());
            let interface = index.and_then(|index| interfaces.get(index));
            says_where && interface.is_some_and(|interface| !is_inside(interface))
        };
        all.iter()
            .filter(|entry| !is_hosts(entry))
            .filter_map(|entry| {
                let text = entry.get("address")?.as_str()?;
                text.split('/').next()?.parse().ok()
            })
            .take(MAX_IPS)
            .collect()
    }

    /// The containers that still exist, for GC.
    ///
    /// # Errors
    /// The runtime does not say (specification 1.1.0, section 3, GC: the list is required): every
    /// sandbox would be forgotten.
    pub fn valid_attachments(&self) -> Result<Vec<String>, CniError> {
        let Some(valid) = &self.valid else {
            let details = "GC without cni.dev/valid-attachments".into();
            return Err(CniError::new(Code::InvalidConfig, details));
        };
        Ok(valid.iter().map(|attachment| attachment.container_id.clone()).collect())
    }
}

/// The version to answer in: that of the configuration, also when it is otherwise wrong.
pub(super) fn version_of(stdin: &str) -> String {
    let newest = || VERSIONS.last().copied().unwrap_or_default().to_owned();
    let value: Option<Value> = serde_json::from_str(stdin).ok();
    let said = value.as_ref().and_then(|v| v.get("cniVersion")).and_then(Value::as_str);
    said.filter(|v| VERSIONS.contains(v)).map_or_else(newest, str::to_owned)
}
