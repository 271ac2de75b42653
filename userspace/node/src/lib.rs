//! The node daemon: settings, wiring, supervision, drain, admin API.
//!
//! Everything that carries a connection is in other crates; this one starts them in an order in
//! which nothing is ever uncaptured or plaintext, keeps enrolment in step with the configuration,
//! and ends them.
#![forbid(unsafe_code)]

pub mod admin;
mod calls;
pub mod certificates;
pub mod check;
pub mod clean;
pub mod cni;
pub mod configuration;
pub mod daemon;
pub mod discovery;
mod enroller;
pub mod enrolment;
mod handover;
pub mod instance;
mod life;
pub mod logging;
mod mesh;
pub mod metrics;
mod open;
pub mod pages;
pub mod process;
mod random;
pub mod readiness;
pub mod rpc;
pub mod runtime;
pub mod settings;
pub mod signals;
mod succession;
pub mod supervise;
mod unix_socket;
