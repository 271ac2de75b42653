//! `fairlead.replica.v1`: the nodes' verdicts, from replicas of the controller to the leading one.

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "made by prost from the documented proto file"
    )]
    tonic::include_proto!("fairlead.replica.v1");
}

pub use generated::*;

/// The version of the protocol that this build speaks: [`Hello::protocol`].
pub const PROTOCOL: u32 = 1;
/// Bytes of the largest message, either way.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The audience that tokens of replicas are made for.
pub const TOKEN_AUDIENCE: &str = "fairlead-controller";
/// Streams of nodes in one picture: their numbers are below this.
pub const MAX_STREAMS: usize = 16_384;
/// Objects in one picture.
pub const MAX_OBJECTS: usize = 250_000;
