//! The port to whoever knows more than the snapshot: before a connection is taken for one to the
//! outside of the mesh, it is asked about its destination.
//!
//! A node that is told only what its pods need does not know every pod of the mesh; an enrolled
//! destination must not be reached in plaintext for that.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

/// What is known about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The snapshot may have changed: it decides.
    LookAgain,
    /// Nothing: it is outside of the mesh.
    Unknown,
    /// Nobody can tell, and it must not be guessed; the reason.
    Refused(&'static str),
}

/// The future of [`UnknownDestinations::look_up`]. Boxed: one per connection to an unknown
/// address.
pub type AnswerFuture<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Looks destinations up that the snapshot does not know.
pub trait UnknownDestinations: Send + Sync + 'static {
    /// What is known about an address, within about a second.
    fn look_up(&self, address: IpAddr) -> AnswerFuture<'_>;
}
