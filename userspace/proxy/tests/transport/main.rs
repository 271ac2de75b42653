//! The transport between two nodes, over loopback with real TLS: what streams mean, who may
//! speak as whom, and what a hostile peer can do.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests; modules of one binary")]

mod hbone;
mod hostile;
mod identity;
mod load;
mod path;
mod request;
mod sessions;
mod support;
mod tunnel;
