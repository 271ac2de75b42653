//! Settings as people write them: flags, environment, file. One set of structs serves all three.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum};
use fairlead_config::source::from_yaml;
use serde::Deserialize;

use super::SettingsError;
use super::address::Address;
use super::span::Span;

/// Longest settings file that is read.
const MAX_FILE: u64 = 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  # One machine, a directory of YAML, everything else by default:
  fairlead-node --config-dir ./mesh

  # Two nodes on one kernel, each with its own cgroup subtree, pins and admin port:
  fairlead-node --node a --config-dir ./mesh --ca-dir ./ca \\
      --pin-dir /sys/fs/bpf/fairlead-a --cgroup-root /sys/fs/cgroup/mesh/a
  fairlead-node --node b --config-dir ./mesh --ca-dir ./ca --admin 127.0.0.1:15001 \\
      --pin-dir /sys/fs/bpf/fairlead-b --cgroup-root /sys/fs/cgroup/mesh/b

  # A node of a cluster, as the DaemonSet runs it (NODE_NAME is in its environment):
  fairlead-node --controller https://fairlead.istio-system.svc:15012 \\
      --ca-root /var/run/fairlead/ca/root-cert.pem --token-file /var/run/secrets/tokens/istio-token \\
      --metrics-address 0.0.0.0:15020 --unknown-netns refuse

  # The same with certificates of another authority (istio-csr, or any with Istio's service):
  fairlead-node --controller https://fairlead.istio-system.svc:15012 \\
      --ca-address https://cert-manager-istio-csr.cert-manager.svc:443

  # The same as a file (flags and FAIRLEAD_* variables come before it):
  #   node: a
  #   configDir: /etc/fairlead/config
  #   identity: {caDir: /var/lib/fairlead/ca, certTtl: 1h}
  #   capture: {cgroupRoot: /sys/fs/cgroup/mesh/a, unknownNetns: pass}
  #   run: {workers: 2, drain: 30s}
  #   log: {level: info, format: json, accessLogFile: /dev/stdout}
  fairlead-node --settings /etc/fairlead/node.yaml

  # Can it run here?
  fairlead-node --check
  fairlead-node --check -o json

  # While it runs:
  curl -s 127.0.0.1:15000/ready
  curl -s 127.0.0.1:15000/problems
  curl -s -X POST '127.0.0.1:15000/logging?level=debug'

Signals: SIGTERM drains (see --drain) and ends, a second one ends at once; SIGHUP reads the
configuration again. The kernel programs stay: while no daemon runs, connections of enrolled pods
are refused.";

/// Fairlead's node daemon: carries the traffic of this node's enrolled pods under their
/// identities, routes and policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser, Deserialize)]
#[command(name = "fairlead-node", version, after_help = EXAMPLES, max_term_width = 100)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// Settings file (YAML); flags and environment variables come before it
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_SETTINGS")]
    #[serde(skip)]
    pub settings: Option<PathBuf>,

    /// Takes away what daemons left on this node (kernel programs, pins, state) instead of running:
    /// its pods are outside the mesh then. Refused while a daemon runs
    #[arg(long)]
    #[serde(skip)]
    pub clean: bool,

    /// Says what this node lacks for Fairlead, instead of running; fails if it cannot run here
    #[arg(long, conflicts_with = "clean")]
    #[serde(skip)]
    pub check: bool,

    /// Form of what --check says
    #[arg(long, short, requires = "check", default_value = "table")]
    #[serde(skip)]
    pub output: CheckOutput,

    /// Name of this node: pods with this spec.nodeName are local [default: $NODE_NAME, then the
    /// host's name]
    #[arg(long, visible_alias = "node-name", value_name = "NAME", env = "FAIRLEAD_NODE")]
    pub node: Option<String>,

    /// Directory of YAML: Kubernetes and Istio resources [default: /etc/fairlead/config]
    #[arg(long, visible_alias = "config", value_name = "DIR", env = "FAIRLEAD_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,

    /// Controller, instead of a directory.
    #[command(flatten)]
    pub controller: ControllerOptions,

    /// Address of the admin API, loopback only [default: 127.0.0.1:15000]
    #[arg(long, value_name = "ADDRESS", env = "FAIRLEAD_ADMIN")]
    pub admin: Option<SocketAddr>,

    /// Where /metrics, /ready and /live (and nothing else) are served for the kubelet and
    /// Prometheus; not loopback only [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "FAIRLEAD_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,

    /// Certificates.
    #[command(flatten)]
    pub identity: IdentityOptions,

    /// Kernel.
    #[command(flatten)]
    pub capture: CaptureOptions,

    /// Threads and the end.
    #[command(flatten)]
    pub run: RunOptions,

    /// What is logged.
    #[command(flatten)]
    pub log: LogOptions,
}

/// `controller` of the settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Controller")]
pub struct ControllerOptions {
    /// Controller that configuration comes from, instead of a directory, and certificates too
    /// unless --ca-address or --ca-dir says otherwise
    #[arg(long = "controller", value_name = "https://HOST:PORT", env = "FAIRLEAD_CONTROLLER")]
    pub address: Option<Address>,

    /// Certificates by which the controller and the certificate authority are recognized (PEM);
    /// read again for every connection [default: /var/run/fairlead/ca/root-cert.pem]
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_CA_ROOT")]
    pub ca_root: Option<PathBuf>,

    /// Token by which they recognize this node; read again for every connection
    /// [default: /var/run/secrets/tokens/istio-token]
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,

    /// Directory of what the daemon was told last, with which it starts while the controller
    /// cannot be reached [default: /var/lib/fairlead]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// Name of the cluster: what was kept of another one is not used [default: Kubernetes]
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_CLUSTER_ID")]
    pub cluster_id: Option<String>,

    /// Namespace of the mesh's settings (ConfigMap istio) and of policies for the whole mesh, as the
    /// controller has it [default: istio-system]
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_ROOT_NAMESPACE")]
    pub root_namespace: Option<String>,

    /// Whether certificates and their keys are kept in the state directory too (mode 0600), so
    /// that a daemon that starts without its certificate authority can serve [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          env = "FAIRLEAD_KEEP_CERTIFICATES")]
    pub keep_certificates: Option<bool>,

    /// What a pod's connection to a private address gets that nobody knows and that the
    /// controller cannot be asked about, or that is one of a node's pods by its range and nobody's
    /// for now: it may be a pod of the mesh [default: refuse]
    #[arg(long, value_name = "POLICY", env = "FAIRLEAD_UNANSWERED")]
    pub unanswered: Option<Unanswered>,
}

/// What happens to a connection to a private address that nothing is known about while the
/// controller does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unanswered {
    /// It is refused: an enrolled destination must not be reached in plaintext.
    #[default]
    Refuse,
    /// It is carried as one to a destination outside of the mesh.
    Pass,
}

/// `identity` of the settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Identity")]
pub struct IdentityOptions {
    /// Directory of the certificate authority; made on first use [default: /var/lib/fairlead/ca]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_CA_DIR")]
    pub ca_dir: Option<PathBuf>,

    /// Certificate authority that speaks Istio's certificate service, such as istio-csr
    /// [default: the controller, if there is one]
    #[arg(long, value_name = "https://HOST:PORT", env = "FAIRLEAD_CA_ADDRESS")]
    pub ca_address: Option<Address>,

    /// Life of workload certificates; they are renewed at about half of it [default: 1h]
    #[arg(long, value_name = "DURATION", env = "FAIRLEAD_CERT_TTL")]
    pub cert_ttl: Option<Span>,
}

/// `capture` of the settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Capture")]
pub struct CaptureOptions {
    /// Directory on a bpf file system for pinned programs and maps; they outlive the daemon
    /// [default: /sys/fs/bpf/fairlead]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_PIN_DIR")]
    pub pin_dir: Option<PathBuf>,

    /// The cgroup (v2) under which this node's pods live [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,

    /// The cgroup of all pods: processes of the host's network in it are pods, others are the node
    /// itself, whose probes pass [default: kubepods.slice or kubepods below --cgroup-root]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_PODS_CGROUP")]
    pub pods_cgroup: Option<PathBuf>,

    /// Where the CNI plugin asks, and with it: have pods found by their processes [default:
    /// /run/fairlead/cni.sock with a controller, nowhere without]
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_CNI_SOCKET")]
    pub cni_socket: Option<PathBuf>,

    /// The node's /proc, in which pods' processes are found [default: /proc]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_PROC")]
    pub proc: Option<PathBuf>,

    /// What connections get that leave a network namespace nobody has spoken for [default: pass]
    #[arg(long, value_name = "POLICY", env = "FAIRLEAD_UNKNOWN_NETNS")]
    pub unknown_netns: Option<UnknownNetns>,

    /// Connections that may be on their way from the kernel programs to the daemon or from it to
    /// an application; beyond it they are refused [default: 16384]
    #[arg(long, value_name = "N", env = "FAIRLEAD_MAX_FLOWS")]
    pub max_flows: Option<u32>,

    /// Have the kernel programs log what they do, at level debug; they contain nothing of it
    /// otherwise [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          env = "FAIRLEAD_KERNEL_LOG")]
    pub kernel_log: Option<bool>,
}

/// What happens to network namespaces that are neither enrolled nor known to be left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownNetns {
    /// They are no business of the mesh (for nodes where not everything is a pod).
    #[default]
    Pass,
    /// Their connections are refused until the daemon has spoken: a pod that connects before its
    /// enrolment has been seen is refused rather than let through.
    Refuse,
}

/// `run` of the settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Running")]
pub struct RunOptions {
    /// Threads that carry traffic; one is right until a core is full [default: 1]
    #[arg(long, value_name = "N", env = "FAIRLEAD_WORKERS")]
    pub workers: Option<usize>,

    /// How long connections may go on after SIGTERM [default: 30s]
    #[arg(long, value_name = "DURATION", env = "FAIRLEAD_DRAIN")]
    pub drain: Option<Span>,

    /// How long a daemon that another one has taken over from stays when it has drained, until it is
    /// ended or its successor is. Where ended daemons are started again (kubelet), it would take
    /// everything back otherwise [default: 0s]
    #[arg(long, value_name = "DURATION", env = "FAIRLEAD_LINGER")]
    pub linger: Option<Span>,

    /// Where a daemon that is started while this one runs takes over from it, so that no
    /// connection is refused [default: /run/fairlead/handover.sock with a controller, nowhere
    /// without]
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_HANDOVER_SOCKET")]
    pub handover_socket: Option<PathBuf>,

    /// Where `fairlead-node ready` asks this very process, whoever has the addresses
    /// [default: nowhere]
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_INSTANCE_SOCKET")]
    pub instance_socket: Option<PathBuf>,

    /// Connections carried at the same time; one more is refused [default: 250000, or what the
    /// limit of descriptors allows]
    #[arg(long, value_name = "N", env = "FAIRLEAD_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
}

/// `log` of the settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Logging")]
pub struct LogOptions {
    /// Level, or directives by module: info,fairlead_proxy=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "FAIRLEAD_LOG")]
    #[serde(rename = "level")]
    pub log_level: Option<String>,

    /// Format of the daemon's own log, on stderr [default: text]
    #[arg(long, value_name = "FORMAT", env = "FAIRLEAD_LOG_FORMAT")]
    #[serde(rename = "format")]
    pub log_format: Option<LogFormat>,

    /// Access log file, instead of MeshConfig's accessLogFile; empty: none
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_ACCESS_LOG_FILE")]
    pub access_log_file: Option<String>,
}

/// Form of the report on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// A table for people.
    #[default]
    Table,
    /// JSON.
    Json,
}

/// Format of the daemon's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl Options {
    /// Reads a settings file.
    ///
    /// # Errors
    /// [`SettingsError::File`] says where it is wrong.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let wrong = |message: String| SettingsError::File { path: path.into(), message };
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > MAX_FILE {
            return Err(wrong(format!("longer than {MAX_FILE} bytes: not a settings file")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        from_yaml(&text).map_err(wrong)
    }

    /// These options, completed by `file`.
    #[must_use]
    pub fn over(self, file: Self) -> Self {
        Self {
            settings: self.settings,
            clean: self.clean,
            check: self.check,
            output: self.output,
            node: self.node.or(file.node),
            config_dir: self.config_dir.or(file.config_dir),
            controller: self.controller.over(file.controller),
            admin: self.admin.or(file.admin),
            metrics_address: self.metrics_address.or(file.metrics_address),
            identity: IdentityOptions {
                ca_dir: self.identity.ca_dir.or(file.identity.ca_dir),
                ca_address: self.identity.ca_address.or(file.identity.ca_address),
                cert_ttl: self.identity.cert_ttl.or(file.identity.cert_ttl),
            },
            capture: CaptureOptions {
                pin_dir: self.capture.pin_dir.or(file.capture.pin_dir),
                cgroup_root: self.capture.cgroup_root.or(file.capture.cgroup_root),
                pods_cgroup: self.capture.pods_cgroup.or(file.capture.pods_cgroup),
                cni_socket: self.capture.cni_socket.or(file.capture.cni_socket),
                proc: self.capture.proc.or(file.capture.proc),
                unknown_netns: self.capture.unknown_netns.or(file.capture.unknown_netns),
                max_flows: self.capture.max_flows.or(file.capture.max_flows),
                kernel_log: self.capture.kernel_log.or(file.capture.kernel_log),
            },
            run: RunOptions {
                workers: self.run.workers.or(file.run.workers),
                drain: self.run.drain.or(file.run.drain),
                linger: self.run.linger.or(file.run.linger),
                handover_socket: self.run.handover_socket.or(file.run.handover_socket),
                instance_socket: self.run.instance_socket.or(file.run.instance_socket),
                max_connections: self.run.max_connections.or(file.run.max_connections),
            },
            log: LogOptions {
                log_level: self.log.log_level.or(file.log.log_level),
                log_format: self.log.log_format.or(file.log.log_format),
                access_log_file: self.log.access_log_file.or(file.log.access_log_file),
            },
        }
    }
}

impl ControllerOptions {
    fn over(self, file: Self) -> Self {
        Self {
            address: self.address.or(file.address),
            ca_root: self.ca_root.or(file.ca_root),
            token_file: self.token_file.or(file.token_file),
            state_dir: self.state_dir.or(file.state_dir),
            cluster_id: self.cluster_id.or(file.cluster_id),
            root_namespace: self.root_namespace.or(file.root_namespace),
            keep_certificates: self.keep_certificates.or(file.keep_certificates),
            unanswered: self.unanswered.or(file.unanswered),
        }
    }
}
