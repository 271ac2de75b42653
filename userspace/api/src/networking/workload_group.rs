//! Istio `networking/v1.WorkloadGroup`: what workload entries that register themselves look like.

use serde::Deserialize;

use super::WorkloadEntrySpec;
use crate::{Object, StringMap};

/// A template of workload entries, and how their health is probed.
pub type WorkloadGroup = Object<WorkloadGroupSpec>;

/// `spec` of a [`WorkloadGroup`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("template")))]
pub struct WorkloadGroupSpec {
    /// Metadata of the entries that are made.
    pub metadata: Option<WorkloadGroupMetadata>,
    /// What the entries are made of; address and health come from the workload.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "!(has(self.address) && self.address.startsWith('unix://') && has(self.ports))",
        "a Unix socket has no ports"
    )))]
    pub template: Option<WorkloadEntrySpec>,
    /// How the health of a workload is found.
    pub probe: Option<ReadinessProbe>,
}

/// `WorkloadGroup.ObjectMeta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadGroupMetadata {
    /// Labels of the entries.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::labels"))]
    pub labels: StringMap,
    /// Annotations of the entries.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::labels"))]
    pub annotations: StringMap,
}

/// `ReadinessProbe`; one of the four ways is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::one_of("httpGet tcpSocket exec grpc")))]
pub struct ReadinessProbe {
    /// Seconds before the first probe.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub initial_delay_seconds: i32,
    /// Seconds that a probe may take; 1 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub timeout_seconds: i32,
    /// Seconds between probes; 10 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub period_seconds: i32,
    /// Successes in a row after which a workload counts as healthy; 1 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub success_threshold: i32,
    /// Failures in a row after which a workload counts as unhealthy; 3 if 0.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub failure_threshold: i32,
    /// Probe by an HTTP request: any status from 200 to 399 is a success.
    pub http_get: Option<HttpProbe>,
    /// Probe by opening a connection.
    pub tcp_socket: Option<TcpProbe>,
    /// Probe by a command that exits with 0.
    pub exec: Option<ExecProbe>,
    /// Probe by gRPC's health service.
    pub grpc: Option<GrpcProbe>,
}

/// `HTTPHealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("port")))]
pub struct HttpProbe {
    /// Path of the request.
    pub path: String,
    /// Port of the request.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: u32,
    /// Host to connect to; the workload itself if empty.
    pub host: String,
    /// Scheme of the request: HTTP or HTTPS.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^(HTTPS?)?$")))]
    pub scheme: String,
    /// Headers of the request.
    pub http_headers: Vec<ProbeHeader>,
}

/// `HTTPHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeHeader {
    /// Name of the header.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[-_A-Za-z0-9]+$")))]
    pub name: String,
    /// Value of the header.
    pub value: String,
}

/// `TCPHealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("port")))]
pub struct TcpProbe {
    /// Host to connect to; the workload itself if empty.
    pub host: String,
    /// Port to connect to.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: u32,
}

/// `ExecHealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("command")))]
pub struct ExecProbe {
    /// Program and arguments; no shell is involved.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub command: Vec<String>,
}

/// `GrpcHealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcProbe {
    /// Port to connect to.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub port: u32,
    /// Service that is asked for; the server as a whole if empty.
    pub service: String,
}
