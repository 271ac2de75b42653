//! Mesh-wide settings, under MeshConfig's names.

use std::sync::Arc;
use std::time::Duration;

use fairlead_policy::authz::path::Normalization;
use fairlead_policy::filter::retry::RetryPolicy;
use fairlead_types::TrustDomain;

/// What MeshConfig says, with Istio's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshSettings {
    /// `trustDomain`, default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// `trustDomainAliases`.
    pub trust_domain_aliases: Box<[TrustDomain]>,
    /// `rootNamespace`, default `istio-system`.
    pub root_namespace: Arc<str>,
    /// `outboundTrafficPolicy.mode`, default ALLOW_ANY.
    pub outbound: OutboundPolicy,
    /// `accessLogFile`, `accessLogEncoding`, `accessLogFormat`.
    pub access_log: AccessLogSettings,
    /// `connectTimeout`, default 10 s.
    pub connect_timeout: Duration,
    /// `protocolDetectionTimeout`; 0 means no limit in Istio.
    pub protocol_detection_timeout: Duration,
    /// `defaultHttpRetryPolicy`, default two attempts on connect failure and the like.
    pub default_retry: RetryPolicy,
    /// `pathNormalization.normalization`: how paths are read before rules look at them.
    pub path_normalization: Normalization,
    /// `enableAutoMtls`, default true.
    pub auto_mtls: bool,
    /// Domain of cluster services, `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Name of this cluster in telemetry, `Kubernetes`.
    pub cluster_name: Arc<str>,
}

impl Default for MeshSettings {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Box::default(),
            root_namespace: "istio-system".into(),
            outbound: OutboundPolicy::default(),
            access_log: AccessLogSettings::default(),
            connect_timeout: Duration::from_secs(10),
            protocol_detection_timeout: Duration::ZERO,
            default_retry: RetryPolicy::default(),
            path_normalization: Normalization::default(),
            auto_mtls: true,
            cluster_domain: "cluster.local".into(),
            cluster_name: "Kubernetes".into(),
        }
    }
}

/// `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    #[default]
    /// Unknown destinations pass through.
    AllowAny,
    /// Unknown destinations are refused: 502 for HTTP, reset for TCP.
    RegistryOnly,
}

/// Where and how access is logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessLogSettings {
    /// `accessLogFile`; `None` or empty: no access log.
    pub file: Option<Arc<str>>,
    /// `accessLogEncoding`.
    pub encoding: AccessLogEncoding,
    /// `accessLogFormat`; `None`: Istio's default of the encoding.
    pub format: Option<Arc<str>>,
}

/// `accessLogEncoding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLogEncoding {
    #[default]
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}
