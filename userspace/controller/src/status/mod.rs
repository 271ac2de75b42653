//! Conditions and events: what became of each resource.
//!
//! Each object of Istio's kinds gets Istio's shape of status with three conditions:
//! - `Accepted`: whether it is valid, and if not, which field is wrong and what is allowed there;
//! - `Reconciled`: whether the nodes that need it took it, how many did, which refused and why;
//! - `Enforced`: whether all that it says has an effect, and if not, which fields have none yet.
//!
//! Only the leader writes, only what changed, by server-side apply on the status subresource, with a
//! limit on writes per second; changes that come close together become one write. What a person
//! has to mend also becomes an event, once.

mod conditions;
mod writer;

use fairlead_api::Kind;

pub use writer::{StatusMetrics, StatusSettings, StatusWriter};

/// The resource name of a kind, such as `virtualservices`.
#[must_use]
pub fn plural(kind: Kind) -> String {
    let name = kind.as_str().to_ascii_lowercase();
    let vowel_before = name.as_bytes().iter().rev().nth(1).is_some_and(|b| b"aeiou".contains(b));
    match name.strip_suffix('y') {
        Some(stem) if !vowel_before => format!("{stem}ies"),
        _ => format!("{name}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_the_crds() {
        let names: Vec<String> =
            Kind::ALL.iter().copied().filter(|kind| kind.is_istio()).map(plural).collect();
        for name in [
            "virtualservices",
            "destinationrules",
            "serviceentries",
            "workloadentries",
            "gateways",
            "sidecars",
            "authorizationpolicies",
            "peerauthentications",
            "requestauthentications",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
        }
    }
}
