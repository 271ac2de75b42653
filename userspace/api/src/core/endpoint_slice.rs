//! Kubernetes `discovery/v1.EndpointSlice`.

use serde::Deserialize;

use super::Protocol;
use super::endpoints::Endpoints;
use crate::ObjectMeta;

/// Some endpoints of a service, which the label `kubernetes.io/service-name` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Kubernetes metadata.
    pub metadata: ObjectMeta,
    /// What the addresses are.
    pub address_type: AddressType,
    /// Endpoints.
    pub endpoints: Endpoints,
    /// Ports of every endpoint.
    pub ports: Vec<EndpointPort>,
}

impl EndpointSlice {
    /// The label that names the service.
    pub const SERVICE_NAME_LABEL: &'static str = "kubernetes.io/service-name";

    /// The service to which the endpoints belong.
    #[must_use]
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get(Self::SERVICE_NAME_LABEL).map(String::as_str)
    }
}

/// `AddressType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    #[default]
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// DNS names.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// `EndpointConditions`; what is not given counts as Kubernetes says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Takes new traffic; true if absent.
    pub ready: Option<bool>,
    /// Answers; as `ready` if absent.
    pub serving: Option<bool>,
    /// Is going away; false if absent.
    pub terminating: Option<bool>,
}

/// `EndpointPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the service port.
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// Number; absent means all ports.
    pub port: Option<u16>,
    /// Application protocol.
    pub app_protocol: Option<String>,
}
