//! Settings of the controller. Each can be a flag or an environment variable.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  In the cluster, as manifests/ deploys it:
    fairlead-controller

  Beside a cluster, for a look at it:
    fairlead-controller --kubeconfig ~/.kube/config --log-level debug

  As istiod had it, where policies of the whole mesh are in istio-system:
    fairlead-controller --root-namespace istio-system --trust-domain example.org
";

/// Watches the API server, streams to node daemons what they need, signs their certificates,
/// checks what is applied.
#[derive(Clone, Debug, Parser)]
#[command(name = "fairlead-controller", version, after_help = EXAMPLES)]
pub struct Settings {
    /// Where node daemons and other clients come for configuration and certificates (gRPC, TLS)
    #[arg(long, value_name = "ADDR", env = "FAIRLEAD_GRPC_LISTEN", default_value_t = any(15012))]
    pub grpc_listen: SocketAddr,

    /// Where /metrics, /ready and /live are
    #[arg(long, value_name = "ADDR", env = "FAIRLEAD_MONITORING_LISTEN",
          default_value_t = any(15014))]
    pub monitoring_listen: SocketAddr,

    /// Where the API server has resources checked (HTTPS)
    #[arg(long, value_name = "ADDR", env = "FAIRLEAD_WEBHOOK_LISTEN", default_value_t = any(15017))]
    pub webhook_listen: SocketAddr,

    /// The namespace that the controller runs in: of its Secrets, its Lease and its Service
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "fairlead-system")]
    pub namespace: String,

    /// The name of this replica
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub replica: Option<String>,

    /// The service account of this replica and the others
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_SERVICE_ACCOUNT",
        default_value = "fairlead-controller"
    )]
    pub service_account: String,

    /// Where other replicas reach this one, beside the port of --grpc-listen; without it, those
    /// cannot tell it what their nodes say
    #[arg(long, value_name = "IP", env = "POD_IP")]
    pub replica_ip: Option<IpAddr>,

    /// This replica's token for another one (audience fairlead-controller)
    #[arg(
        long,
        value_name = "FILE",
        env = "FAIRLEAD_REPLICA_TOKEN",
        default_value = "/var/run/fairlead/token/token"
    )]
    pub replica_token: PathBuf,

    /// The Service by which nodes and the API server reach the controller
    #[arg(
        long,
        value_name = "NAME",
        env = "FAIRLEAD_SERVICE",
        default_value = "fairlead-controller"
    )]
    pub service: String,

    /// Further names in the certificate of the controller's listeners
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_TLS_NAMES", value_delimiter = ',')]
    pub tls_name: Vec<String>,

    /// Port of that Service behind which the webhook is
    #[arg(long, value_name = "PORT", env = "FAIRLEAD_WEBHOOK_SERVICE_PORT", default_value_t = 443)]
    pub webhook_service_port: u16,

    /// Keep no ValidatingWebhookConfiguration
    #[arg(long, env = "FAIRLEAD_NO_WEBHOOK")]
    pub no_webhook: bool,

    /// The namespace whose policies count for the whole mesh, and where the ConfigMap istio with
    /// its settings is [default: the controller's own]
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_ROOT_NAMESPACE")]
    pub root_namespace: Option<String>,

    /// Trust domain of identities: spiffe://<this>/ns/…
    #[arg(
        long,
        value_name = "DOMAIN",
        env = "FAIRLEAD_TRUST_DOMAIN",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,

    /// Domain of the cluster's Services
    #[arg(
        long,
        value_name = "DOMAIN",
        env = "FAIRLEAD_CLUSTER_DOMAIN",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,

    /// Name of the cluster
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_CLUSTER_NAME", default_value = "Kubernetes")]
    pub cluster_name: String,

    /// Service account of node daemons, namespace/name; may be given several times
    /// [default: fairlead-node in the controller's own namespace]
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        env = "FAIRLEAD_NODE_ACCOUNTS",
        value_delimiter = ','
    )]
    pub node_account: Vec<String>,

    /// A kubeconfig file [default: the pod's service account, or what kubectl would take]
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Least time between two updates to one node, in milliseconds
    #[arg(long, value_name = "MS", env = "FAIRLEAD_UPDATE_GAP", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub update_gap: u64,

    /// Level, or directives by module: info,fairlead_controller=debug
    #[arg(long, value_name = "LEVEL", env = "FAIRLEAD_LOG", default_value = "info")]
    pub log_level: String,

    /// Format of the log, on stderr
    #[arg(long, value_name = "FORMAT", env = "FAIRLEAD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

impl Settings {
    /// The namespace whose policies count for the whole mesh.
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        self.root_namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.namespace)
    }

    /// Where other replicas reach this one.
    #[must_use]
    pub fn replica_address(&self) -> Option<SocketAddr> {
        self.replica_ip.map(|ip| SocketAddr::new(ip, self.grpc_listen.port()))
    }

    /// Service accounts of node daemons.
    #[must_use]
    pub fn node_accounts(&self) -> Vec<String> {
        if self.node_account.is_empty() {
            vec![format!("{}/fairlead-node", self.namespace)]
        } else {
            self.node_account.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn defaults_and_help() {
        Settings::command().debug_assert();
        let settings = Settings::parse_from(["fairlead-controller", "--namespace", "mesh"]);
        assert_eq!(settings.root_namespace(), "mesh");
        assert_eq!(settings.node_accounts(), ["mesh/fairlead-node"]);
        assert_eq!(settings.grpc_listen.port(), 15012);
        let istio = ["fairlead-controller", "--root-namespace", "istio-system"];
        assert_eq!(Settings::parse_from(istio).root_namespace(), "istio-system");
        assert!(Settings::command().render_long_help().to_string().contains("Examples:"));
    }
}
