//! The harness of the scenarios and of the demo: nodes, pods and the wire between them as network
//! namespaces, a node daemon on each node, and eyes on everything (packets, metrics, access log).
//!
//! All of it is real: namespaces, veth pairs, cgroups, the daemon's own binary. Whatever a run
//! makes carries the run's name (`fl-…`), goes away when its [`Mesh`] is dropped, and can be
//! removed by [`run::clean`] after a run that was killed.

pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod daemon;
pub mod inside;
pub mod kube;
pub mod log;
pub mod manifest;
pub mod meanwhile;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod packets;
pub mod pod;
pub mod process;
pub mod run;
pub mod shell;
pub mod tls;
pub mod topology;
pub mod wait;
pub mod wire;

pub use client::{Load, Reply, Sent};
pub use cluster::{Cluster, ClusterOptions};
pub use daemon::Daemon;
pub use kube::KubeMesh;
pub use log::Entry;
pub use manifest::{PodSpec, ServiceSpec};
pub use metrics::Metrics;
pub use node::Node;
pub use pod::Pod;
pub use process::Process;
pub use topology::Mesh;
pub use wait::eventually;
pub use wire::Capture;
