//! MeshConfig to the settings of the mesh.

use std::sync::Arc;
use std::time::Duration;

use fairlead_api::{
    AccessLogEncoding as ApiEncoding, Kind, MeshConfig, ObjectKey, OutboundTrafficPolicyMode,
    PathNormalizationType, ProtoDuration,
};
use fairlead_policy::authz::path::Normalization;
use fairlead_policy::filter::retry::RetryPolicy;

use super::http_route;
use super::problem::{Problem, Report};
use crate::model::{AccessLogEncoding, AccessLogSettings, MeshSettings, OutboundPolicy};
use crate::source::MESH_CONFIG_MAP;

/// What a node is told besides MeshConfig.
#[derive(Clone, Debug)]
pub struct CompilerSettings {
    /// Name of this node: pods with this `spec.nodeName` are local.
    pub node: Arc<str>,
    /// Domain of cluster services.
    pub cluster_domain: Arc<str>,
    /// Name of the cluster in telemetry.
    pub cluster_name: Arc<str>,
    /// MeshConfig in force until a resource brings another one.
    pub mesh: MeshConfig,
}

impl CompilerSettings {
    /// Istio's defaults for node `node`.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            cluster_domain: "cluster.local".into(),
            cluster_name: "Kubernetes".into(),
            mesh: MeshConfig::default(),
        }
    }
}

/// Whose clients see an object that says nothing of `exportTo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exports {
    /// `defaultVirtualServiceExportTo`.
    pub(super) virtual_services: Vec<String>,
    /// `defaultDestinationRuleExportTo`.
    pub(super) destination_rules: Vec<String>,
}

impl Exports {
    pub(super) fn new(config: &MeshConfig) -> Self {
        Self {
            virtual_services: config.default_virtual_service_export_to.clone(),
            destination_rules: config.default_destination_rule_export_to.clone(),
        }
    }
}

/// Compiles `config`. What it says wrongly stays at its default, except for the trust domain,
/// without which nobody has an identity: that of `before` stays.
fn compile(
    config: &MeshConfig,
    settings: &CompilerSettings,
    before: &MeshSettings,
    report: &mut Report<'_>,
) -> MeshSettings {
    let trust_domain = config.trust_domain.parse().unwrap_or_else(|error| {
        report.error("trustDomain", format!("{error}; {} stays", before.trust_domain));
        before.trust_domain.clone()
    });
    let mut aliases = Vec::new();
    for (i, alias) in config.trust_domain_aliases.iter().enumerate() {
        match alias.parse() {
            Ok(alias) => aliases.push(alias),
            Err(error) => {
                report.error(format!("trustDomainAliases[{i}]"), format!("{error}; ignored"))
            }
        }
    }
    let default_retry = RetryPolicy::default();
    let retry = config.default_http_retry_policy.as_ref().and_then(|written| {
        http_route::retry(written, &default_retry, "defaultHttpRetryPolicy", report)
    });
    let text = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let connect_timeout = config.connect_timeout.get();
    MeshSettings {
        trust_domain,
        trust_domain_aliases: aliases.into(),
        root_namespace: text(&config.root_namespace).unwrap_or_else(|| "istio-system".into()),
        outbound: match config.outbound_traffic_policy.mode {
            OutboundTrafficPolicyMode::AllowAny => OutboundPolicy::AllowAny,
            OutboundTrafficPolicyMode::RegistryOnly => OutboundPolicy::RegistryOnly,
        },
        access_log: AccessLogSettings {
            file: text(&config.access_log_file),
            encoding: match config.access_log_encoding {
                ApiEncoding::Text => AccessLogEncoding::Text,
                ApiEncoding::Json => AccessLogEncoding::Json,
            },
            format: text(&config.access_log_format),
        },
        connect_timeout: if connect_timeout > Duration::ZERO {
            connect_timeout
        } else {
            MeshSettings::default().connect_timeout
        },
        protocol_detection_timeout: ProtoDuration::get(config.protocol_detection_timeout),
        default_retry: retry.unwrap_or(default_retry),
        path_normalization: match config.path_normalization.normalization {
            PathNormalizationType::None => Normalization::None,
            PathNormalizationType::Default | PathNormalizationType::Base => Normalization::Base,
            PathNormalizationType::MergeSlashes => Normalization::MergeSlashes,
            PathNormalizationType::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
        },
        auto_mtls: config.enable_auto_mtls,
        cluster_domain: Arc::clone(&settings.cluster_domain),
        cluster_name: Arc::clone(&settings.cluster_name),
    }
}

/// As [`compile`], with the problems of the object that holds MeshConfig.
pub(super) fn compile_reported(
    config: &MeshConfig,
    settings: &CompilerSettings,
    before: &MeshSettings,
) -> (MeshSettings, Vec<Problem>) {
    let key = ObjectKey::new(Kind::ConfigMap, &before.root_namespace, MESH_CONFIG_MAP);
    let mut problems = Vec::new();
    let mesh = compile(config, settings, before, &mut Report::new(&key, &mut problems));
    (mesh, problems)
}
