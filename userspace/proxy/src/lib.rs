//! Accept, detect, carry: the data plane of one node.
//!
//! [`DataPlane`] is all of it. Enrolment hands it each pod's listening sockets and a port into
//! the pod's namespace ([`fairlead_types::PodSockets`]); from then on every connection that the
//! pod begins (`outbound`) or gets (`inbound`) is carried under one snapshot of the
//! configuration: as bytes (`l4`) or as HTTP (`http`), on this node directly from namespace to
//! namespace, to other nodes by the [`transport`]. What cannot be carried as policy wants it is
//! refused, with a reason in the access log.
#![forbid(unsafe_code)]

mod accept;
pub mod body;
mod choice;
mod dataplane;
pub mod detect;
mod first;
mod housekeeping;
mod http;
mod inbound;
mod l4;
mod labels;
mod live;
mod near;
mod outbound;
mod path;
mod plaintext;
mod random;
mod reach;
mod relay;
mod report;
mod sock;
mod state;
mod streams;
#[cfg(test)]
mod tests;
pub mod transport;
mod unknown;

// For `tests/fuzz` alone: the parsers there are private.
#[doc(hidden)]
pub use crate::http::fuzz as http_fuzz;
pub use dataplane::{DataPlane, Deps, Settings};
pub use live::{ConnectionInfo, Direction, State};
pub use unknown::{Answer, AnswerFuture, UnknownDestinations};
