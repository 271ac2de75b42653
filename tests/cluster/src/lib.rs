//! Real Kubernetes clusters on one machine, without Docker: unmodified upstream components in
//! namespaces of their own. `cargo xtask cluster` is the command for people; scenarios use this
//! crate through `fairlead_tests::cluster`.
//!
//! A cluster is an outer set of namespaces (network, mounts, processes) with a bridge and the
//! control plane, and inside it one set for each node with containerd, kubelet and kube-proxy. A
//! node sees a root file system, a `/run`, a `/sys` and cgroups of its own, so that manifests work
//! there as on a machine. Everything that a cluster has hangs on one cgroup (`fl-cluster-NAME`) and one
//! directory: killing the one and removing the other leaves nothing.

pub mod binaries;
pub mod cgroups;
pub mod cluster;
pub mod component;
mod control_plane;
pub mod image;
pub mod kubectl;
mod namespaces;
mod network;
mod node;
pub mod package;
mod pki;
mod running;
pub mod state;
pub mod status;
pub mod system;

pub use cluster::{Cluster, Options};
pub use component::Component;
pub use status::Status;
