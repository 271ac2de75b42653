//! The controller: watches the API server, streams to node daemons what they need, signs their
//! certificates, checks what is applied, and says in status what became of it.
//!
//! [`watch`] keeps the objects of the API server, trimmed to what nodes read; [`scope`] knows which
//! node needs which of them; [`stream`] brings them there and keeps what the nodes said about them;
//! [`status`] writes that down where people look. [`auth`] says which node speaks, [`ca`] signs,
//! [`admission`] answers the API server, [`lease`] chooses the replica that writes, to which the others
//! tell what their nodes said ([`replica`]).

pub mod admission;
pub mod auth;
pub mod ca;
mod keep;
pub mod lease;
pub mod metrics;
pub mod replica;
pub mod run;
pub mod scope;
pub mod server;
pub mod settings;
pub mod status;
pub mod stream;
pub mod watch;
