//! `fairlead.replica.v1`: the nodes' verdicts, from replicas of the controller to the leading one,
//! and the addresses that nodes claim for their pods, both ways.

crate::generated!("fairlead.replica.v1");

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

impl From<crate::config::AddressedPod> for AddressedPod {
    fn from(pod: crate::config::AddressedPod) -> Self {
        let crate::config::AddressedPod { uid, namespace, name, addresses } = pod;
        Self { uid, namespace, name, addresses }
    }
}

impl From<AddressedPod> for crate::config::AddressedPod {
    fn from(pod: AddressedPod) -> Self {
        let AddressedPod { uid, namespace, name, addresses } = pod;
        Self { uid, namespace, name, addresses }
    }
}
