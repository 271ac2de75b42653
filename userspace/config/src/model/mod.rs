//! The snapshot: the compiled, immutable form of all configuration that one node needs.
//!
//! A connection or request loads one snapshot and keeps it to its end. Parts that did not change
//! are shared with the snapshot before.

mod authority;
mod cluster;
mod inbound;
mod mesh;
mod service;
mod snapshot;
mod workload;

pub use cluster::{Cluster, ClusterPolicy, Endpoint, Locality, UpstreamTls};
pub use inbound::{Inbound, InboundPort, MtlsMode};
pub use mesh::{AccessLogEncoding, AccessLogSettings, MeshSettings, OutboundPolicy};
pub use service::{HostRoutes, Routes, Service, ServiceKey, ServicePort, ServiceRef, VirtualHost};
pub use snapshot::{AuthorityTarget, Map, Outbound, Snapshot, VirtualHosts};
pub use workload::{LocalPod, PeerWire, TargetPort, Workload};
