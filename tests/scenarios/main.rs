//! Scenarios: real applications, real namespaces, the real daemon. One file per behaviour.

mod harness_itself;
