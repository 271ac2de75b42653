//! AuthorizationPolicy: who may do what to a workload, decided at the destination.
//!
//! The order is Istio's: AUDIT notes, DENY refuses (those of the root namespace first), then the
//! ALLOW policies decide: without one everything passes, with one something has to match.
//!
//! Evaluation is pure and needs nothing but the attributes of the connection, so that a
//! connection that lives long can be asked about again whenever policy changes.

pub mod path;
mod rule;
mod set;
mod value;

pub use rule::{Condition, Operation, Rule, Source};
pub use set::{Action, AuthzSet, DenyReason, Policy, PolicyName, Verdict};
pub use value::{
    NamespaceMatch, PathMatch, PrincipalMatch, ServiceAccountMatch, TrustDomainMatch, ValueError,
    Values,
};

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
