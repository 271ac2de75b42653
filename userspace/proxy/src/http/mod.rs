//! Connections that carry HTTP: one request at a time is routed, authorized, sent and reported,
//! whatever version either side speaks. hyper does the parsing and the framing.

pub(crate) mod arrive;
mod attempt;
mod exchange;
pub mod fuzz;
mod head;
mod headers;
mod io;
mod local_reply;
pub(crate) mod pool;
mod replay;
mod request;
mod send;
pub(crate) mod server;
mod service;
mod upgrade;
