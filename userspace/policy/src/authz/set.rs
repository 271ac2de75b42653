//! The policies of one workload and their verdict.

use std::fmt;
use std::sync::Arc;

use super::rule::Rule;
use crate::{ConnView, RequestView};

/// All AuthorizationPolicies that select one workload. Policies are shared among workloads and
/// snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthzSet {
    audit: Box<[Arc<Policy>]>,
    deny: Box<[Arc<Policy>]>,
    allow: Box<[Arc<Policy>]>,
}

/// `action`. CUSTOM has no provider here and is compiled to a DENY of what it selects, as Istio
/// does for a provider that it cannot find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `ALLOW`.
    Allow,
    /// `DENY`.
    Deny,
    /// `AUDIT`.
    Audit,
}

/// Namespace and name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One compiled AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Its action.
    pub action: Action,
    /// `rules`: OR; none at all never matches.
    pub rules: Box<[Rule]>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny(DenyReason),
}

impl Verdict {
    /// Whether it may pass.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// Why it may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// A DENY policy matched.
    Matched {
        /// Which.
        policy: PolicyName,
        /// Which of its rules.
        rule: usize,
    },
    /// There are ALLOW policies, and none matched.
    NoneAllowed,
}

impl DenyReason {
    /// Istio's access log detail: `rbac_access_denied_matched_policy[...]`.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            Self::Matched { policy: PolicyName { namespace, name }, rule } => format!(
                "rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]"
            ),
            Self::NoneAllowed => "rbac_access_denied_matched_policy[none]".into(),
        }
    }
}

/// The code that Istio logs, then the reason in words.
impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code())?;
        match self {
            Self::Matched { policy, rule } => {
                write!(f, ": denied by rule {rule} of AuthorizationPolicy {policy}")
            }
            Self::NoneAllowed => f.write_str(": no ALLOW policy matched"),
        }
    }
}

impl AuthzSet {
    /// From all policies that select a workload, in any order.
    #[must_use]
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>, root_namespace: &str) -> Self {
        let mut stages: [Vec<Arc<Policy>>; 3] = Default::default();
        for policy in policies {
            let stage = match policy.action {
                Action::Audit => 0,
                Action::Deny => 1,
                Action::Allow => 2,
            };
            stages[stage].push(policy);
        }
        let [audit, deny, allow] = stages.map(|mut stage| {
            // Which policy is named in the log when several match: the root namespace's, then
            // by name, as Envoy's ordered map has them.
            stage.sort_by_cached_key(|p| (&*p.name.namespace != root_namespace, p.name.clone()));
            stage.into_boxed_slice()
        });
        Self { audit, deny, allow }
    }

    /// Whether there is no policy: everything passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.audit.is_empty() && self.deny.is_empty() && self.allow.is_empty()
    }

    /// All policies, in the order in which they are asked.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.audit.iter().chain(&self.deny).chain(&self.allow)
    }

    /// Whether both hold the very same policies, so that one can stand for the other.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.policies().count() == other.policies().count()
            && self.policies().zip(other.policies()).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Whether any rule that can apply to `port` looks at the request. Where none does, the
    /// verdict of [`AuthzSet::connection`] holds for every request of a connection.
    #[must_use]
    pub fn needs_http(&self, port: u16) -> bool {
        self.deny
            .iter()
            .chain(&self.allow)
            .flat_map(|policy| &policy.rules)
            .any(|rule| rule.needs_http(port))
    }

    /// The verdict on a connection that carries bytes.
    ///
    /// Conditions on a request cannot hold there. As in Istio, a rule that has one never allows,
    /// and denies as if it did not have it.
    #[must_use]
    pub fn connection(&self, conn: &ConnView<'_>) -> Verdict {
        self.decide(|rule, action| rule.matches_connection(conn, action))
    }

    /// The verdict on one request of a connection. `request.path` has to be the normalized path
    /// ([`super::path`]), and what is normalized is what has to be forwarded.
    #[must_use]
    pub fn request(&self, conn: &ConnView<'_>, request: &RequestView<'_>) -> Verdict {
        self.decide(|rule, _| rule.matches_request(conn, request))
    }

    /// The AUDIT policies that match a request, or a connection when there is none.
    pub fn audited<'a>(
        &'a self,
        conn: &'a ConnView<'a>,
        request: Option<&'a RequestView<'a>>,
    ) -> impl Iterator<Item = &'a PolicyName> {
        self.audit
            .iter()
            .filter(move |policy| {
                policy.rules.iter().any(|rule| match request {
                    Some(request) => rule.matches_request(conn, request),
                    None => rule.matches_connection(conn, Action::Audit),
                })
            })
            .map(|policy| &policy.name)
    }

    fn decide(&self, matches: impl Fn(&Rule, Action) -> bool) -> Verdict {
        for policy in &self.deny {
            if let Some(rule) = policy.rules.iter().position(|rule| matches(rule, Action::Deny)) {
                return Verdict::Deny(DenyReason::Matched { policy: policy.name.clone(), rule });
            }
        }
        let allows = |policy: &Arc<Policy>| policy.rules.iter().any(|r| matches(r, Action::Allow));
        if self.allow.is_empty() || self.allow.iter().any(allows) {
            Verdict::Allow
        } else {
            Verdict::Deny(DenyReason::NoneAllowed)
        }
    }
}
