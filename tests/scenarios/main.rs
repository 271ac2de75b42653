//! Scenarios: real applications, real namespaces, the real daemon. One file per behaviour.

mod addresses;
mod capture;
mod common;
mod harness_itself;
mod http_protocols;
mod http_resilience;
mod http_routing;
mod identity;
mod l4;
mod membership;
mod peer_authentication;
