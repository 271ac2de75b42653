//! Scenarios: real applications, real namespaces, the real daemon. One file per behaviour.

mod addresses;
mod authorization;
mod capture;
mod churn;
mod cluster_itself;
mod common;
mod configuration;
mod controller_source;
mod crds;
mod daemon_death;
mod destination_rules;
mod harness_itself;
mod hostile;
mod http_conformance;
mod http_protocols;
mod http_resilience;
mod http_routing;
mod identity;
mod interop;
mod l4;
mod locality;
mod membership;
mod peer_authentication;
mod race;
mod telemetry;
