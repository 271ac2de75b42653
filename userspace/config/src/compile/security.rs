//! Security policies: kept here, compiled by [`super::authz`] and [`super::peer_authentication`].
//!
//! Both compile all policies of their kind into an index once per change, and answer for one
//! workload at a time. A policy that validation refused, and of which there is no good version,
//! comes as [`FailClosed`]: the index denies in its scope, or requires mTLS there.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_api::security::{AuthorizationPolicy, PeerAuthentication};
use fairlead_api::{Kind, ObjectKey};
use fairlead_types::Labels;

use super::Dirty;
use super::authz::AuthzIndex;
use super::peer_authentication::PeerAuthIndex;

/// A security policy that was refused and has no good version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailClosed {
    /// Which.
    pub key: ObjectKey,
    /// The workloads of its scope, as far as they could be read; empty: all of its namespace, or
    /// of the mesh if that is the root namespace.
    pub selector: Labels,
}

/// All security policies and what was compiled from them.
#[derive(Debug, Default)]
pub(super) struct Security {
    pub(super) authorization: BTreeMap<ObjectKey, Arc<AuthorizationPolicy>>,
    pub(super) peer: BTreeMap<ObjectKey, Arc<PeerAuthentication>>,
    pub(super) fail_closed: Vec<FailClosed>,
    pub(super) authz_index: AuthzIndex,
    pub(super) peer_index: PeerAuthIndex,
}

impl Security {
    pub(super) fn set_fail_closed(&mut self, closed: &[FailClosed], dirty: &mut Dirty) {
        if self.fail_closed != closed {
            self.fail_closed = closed.to_vec();
            dirty.authz = true;
            dirty.peer_authentication = true;
        }
    }

    /// The refused policies in whose scope requests are denied: those that decide on requests. A
    /// RequestAuthentication gets a name that no AuthorizationPolicy can have.
    pub(super) fn closed_requests(&self) -> Vec<FailClosed> {
        let authentication = self.closed(Kind::RequestAuthentication).map(|closed| {
            let name = format!("{}/{}", closed.key.kind, closed.key.name);
            let key = ObjectKey::new(Kind::AuthorizationPolicy, &closed.key.namespace, &name);
            FailClosed { key, selector: closed.selector.clone() }
        });
        self.closed(Kind::AuthorizationPolicy).cloned().chain(authentication).collect()
    }

    /// The refused policies of one kind.
    pub(super) fn closed(&self, kind: Kind) -> impl Iterator<Item = &FailClosed> {
        self.fail_closed.iter().filter(move |closed| closed.key.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_request_authentication_closes_its_scope_and_replaces_no_policy() {
        let closed = |kind, app: &str| FailClosed {
            key: ObjectKey::new(kind, "ns", "jwt"),
            selector: [("app", app)].into_iter().collect(),
        };
        let security = Security {
            fail_closed: vec![
                closed(Kind::RequestAuthentication, "a"),
                closed(Kind::AuthorizationPolicy, "b"),
                closed(Kind::PeerAuthentication, "c"),
            ],
            ..Security::default()
        };
        let requests = security.closed_requests();
        let names: Vec<&str> = requests.iter().map(|closed| &*closed.key.name).collect();
        assert_eq!(names, ["jwt", "RequestAuthentication/jwt"]);
        assert_eq!(requests[1].selector, [("app", "a")].into_iter().collect());
    }
}
