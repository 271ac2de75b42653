//! The CNI plugin and its installer.
//!
//! [`plugin`] is what the container runtime runs for each pod, as the last of a chain: it tells the
//! node daemon about a pod before the pod's first process starts. [`install`] puts it on the node
//! and keeps it in the chain. They are one binary: the installer copies itself.
#![forbid(unsafe_code)]

pub mod access;
pub mod install;
pub mod plugin;
