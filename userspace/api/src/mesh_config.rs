//! Istio `mesh/v1alpha1.MeshConfig`: settings of the whole mesh. They are written in the
//! ConfigMap `istio` of the root namespace, under the key `mesh`.

use std::time::Duration;

use serde::Deserialize;

use crate::networking::{
    H2UpgradePolicy, HttpRetry, LocalityLbSetting, TcpKeepalive, TlsProtocolVersion,
};
use crate::{ProtoDuration, StringMap};

/// `MeshConfig`. `Default` gives Istio's defaults, and so does a field that is not written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Trust domain of the mesh's identities; `cluster.local`.
    pub trust_domain: String,
    /// Other trust domains that are treated as the same.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose policies apply to the whole mesh; `istio-system`.
    pub root_namespace: String,
    /// Destinations that no registry knows.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// File of the access log, `/dev/stdout` as a rule; off if empty.
    pub access_log_file: String,
    /// Format of its lines if empty: Istio's own; otherwise Envoy's operators, or a JSON object
    /// of them.
    pub access_log_format: String,
    /// Encoding of its lines.
    pub access_log_encoding: AccessLogEncoding,
    /// Retries of routes that say nothing.
    pub default_http_retry_policy: Option<HttpRetry>,
    /// How long the first bytes of a connection are waited for; 0 is without limit.
    pub protocol_detection_timeout: ProtoDuration,
    /// Limit of a connect; 10 s.
    pub connect_timeout: ProtoDuration,
    /// Keepalive of upstream connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether mTLS is used between workloads of the mesh without a DestinationRule; true.
    pub enable_auto_mtls: bool,
    /// Normalization of paths before policy looks at them.
    pub path_normalization: PathNormalization,
    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Preferences between localities.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Visibility of services without `exportTo`.
    pub default_service_export_to: Vec<String>,
    /// Visibility of VirtualServices without `exportTo`.
    pub default_virtual_service_export_to: Vec<String>,
    /// Visibility of DestinationRules without `exportTo`.
    pub default_destination_rule_export_to: Vec<String>,
    /// Limits of mTLS between workloads.
    #[serde(rename = "meshMTLS", alias = "meshMtls")]
    pub mesh_mtls: MeshTls,
    /// Whether tracing is on.
    pub enable_tracing: bool,
    /// External authorizers, tracers and log sinks by name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Settings of every proxy.
    pub default_config: ProxyDefaults,
    /// Where configuration comes from; without effect here.
    pub config_sources: Vec<ConfigSource>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::default(),
            default_http_retry_policy: None,
            protocol_detection_timeout: ProtoDuration(Duration::ZERO),
            connect_timeout: ProtoDuration(Duration::from_secs(10)),
            tcp_keepalive: None,
            enable_auto_mtls: true,
            path_normalization: PathNormalization::default(),
            h2_upgrade_policy: H2UpgradePolicy::default(),
            locality_lb_setting: None,
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            mesh_mtls: MeshTls::default(),
            enable_tracing: false,
            extension_providers: Vec::new(),
            default_config: ProxyDefaults::default(),
            config_sources: Vec::new(),
        }
    }
}

/// `MeshConfig.OutboundTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OutboundTrafficPolicy {
    /// Mode.
    pub mode: OutboundTrafficPolicyMode,
}

/// `MeshConfig.OutboundTrafficPolicy.Mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicyMode {
    /// Unknown destinations are refused.
    RegistryOnly,
    /// Unknown destinations are passed through; Istio's default for a mesh.
    #[default]
    AllowAny,
}

/// `MeshConfig.AccessLogEncoding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// Lines of text.
    #[default]
    Text,
    /// JSON objects.
    Json,
}

/// `MeshConfig.ProxyPathNormalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PathNormalization {
    /// How much.
    pub normalization: PathNormalizationType,
}

/// `MeshConfig.ProxyPathNormalization.NormalizationType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalizationType {
    /// BASE.
    #[default]
    Default,
    /// Nothing.
    None,
    /// RFC 3986: dot segments, `\` to `/`, unreserved characters decoded.
    Base,
    /// BASE, and adjacent slashes merged.
    MergeSlashes,
    /// `%2F` and `%5C` decoded first, then MERGE_SLASHES.
    DecodeAndMergeSlashes,
}

/// `MeshConfig.TLSConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTls {
    /// Least version; Fairlead speaks TLS 1.3 only.
    pub min_protocol_version: TlsProtocolVersion,
}

/// `MeshConfig.ExtensionProvider`: name, and one provider that later features read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Unique name.
    pub name: String,
}

/// `ProxyConfig`, the fields with a meaning here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyDefaults {
    /// Worker threads; one per core if absent or 0.
    pub concurrency: Option<u32>,
    /// How long connections may finish when the proxy ends.
    pub termination_drain_duration: Option<ProtoDuration>,
    /// Longest time that old connections live on after a change.
    pub drain_duration: Option<ProtoDuration>,
    /// Environment-like metadata.
    pub proxy_metadata: StringMap,
    /// Hold applications back until the proxy runs; always so here.
    pub hold_application_until_proxy_starts: Option<bool>,
}

/// `MeshConfig.ConfigSource`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConfigSource {
    /// Address.
    pub address: String,
}
