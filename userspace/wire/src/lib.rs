//! Messages between the controller's replicas, the node daemons and the CNI plugin.
//!
//! [`config`], [`ca`] and [`replica`] are gRPC; the files below `proto/` define and document them.
//! [`client`] is how they are called. [`cni`] is one line of JSON each way over a Unix socket.

/// What prost makes of a package of `proto/`.
#[cfg(feature = "grpc")]
macro_rules! generated {
    ($package:literal) => {
        mod generated {
            #![allow(
                missing_docs,
                unreachable_pub,
                clippy::allow_attributes,
                clippy::allow_attributes_without_reason,
                reason = "made by prost from the documented proto file"
            )]
            tonic::include_proto!($package);
        }

        pub use generated::*;
    };
}
#[cfg(feature = "grpc")]
pub(crate) use generated;

#[cfg(feature = "grpc")]
pub mod ca;
#[cfg(feature = "client")]
pub mod client;
pub mod cni;
#[cfg(feature = "grpc")]
pub mod config;
#[cfg(feature = "grpc")]
pub mod replica;
