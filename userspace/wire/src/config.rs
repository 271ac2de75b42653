//! `fairlead.config.v1`: configuration from the controller to the node daemons.

crate::generated!("fairlead.config.v1");

/// The version of the protocol that this build speaks: [`Hello::protocol`].
pub const PROTOCOL: u32 = 1;
/// Bytes of the largest message, either way.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The audience that tokens of node daemons are made for, as of Istio's clients.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
/// Pods in one [`PodAddresses`].
pub const MAX_ADDRESSED_PODS: usize = 1024;
/// Objects in one [`Verdicts`].
pub const MAX_VERDICTS: usize = 256;
