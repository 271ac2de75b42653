//! Messages between the controller's replicas, the node daemons and the CNI plugin.
//!
//! [`config`], [`ca`] and [`replica`] are gRPC; the files below `proto/` define and document them.
//! [`cni`] is one line of JSON each way over a Unix socket.

#[cfg(feature = "grpc")]
pub mod ca;
pub mod cni;
#[cfg(feature = "grpc")]
pub mod config;
#[cfg(feature = "grpc")]
pub mod replica;
