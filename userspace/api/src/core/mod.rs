//! Kubernetes core kinds, the fields that a mesh reads, as `kubectl get -o yaml` prints them.
//! Fields that are not here are of no meaning to a mesh and are passed over without a word.

mod config_map;
mod endpoint_slice;
mod endpoints;
mod namespace;
mod node;
mod pod;
mod secret;
mod service;
mod service_account;

pub use config_map::ConfigMap;
pub use endpoint_slice::{AddressType, EndpointConditions, EndpointPort, EndpointSlice};
pub use endpoints::{Address, Endpoint, Endpoints, ObjectReference};
pub use namespace::Namespace;
pub use node::{Node, NodeAddress, NodeSpec, NodeStatus};
pub use pod::{
    Container, ContainerPort, HostIp, Pod, PodCondition, PodIp, PodPhase, PodSpec, PodStatus,
};
pub use secret::Secret;
pub use service::{
    InternalTrafficPolicy, Protocol, Service, ServicePort, ServiceSpec, ServiceType,
    SessionAffinity,
};
pub use service_account::ServiceAccount;
