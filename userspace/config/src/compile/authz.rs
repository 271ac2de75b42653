//! AuthorizationPolicy to compiled policies, and which of them select a workload.
//!
//! A policy is compiled once, when it changes, and shared by all workloads that it selects and by
//! all snapshots. What cannot be enforced never makes a policy more permissive: a rule that
//! allows and has such a condition never matches; in one that denies the condition is left out,
//! so that it denies more (Istio's `checkError` has the same two sides). Both are reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_api::security::{AuthorizationAction, AuthorizationPolicy};
use fairlead_api::{Kind, ObjectKey};
use fairlead_policy::authz::{Action, AuthzSet, Policy, PolicyName, Rule};
use fairlead_types::{Labels, TrustDomain};

use super::authz_rule::RuleCompiler;
use super::problem::{Problem, Report};
use super::route::labels;
use super::security::FailClosed;
use crate::model::{MeshSettings, Workload};

/// Istio's annotation for a policy that is to be tried without effect.
const DRY_RUN: &str = "istio.io/dry-run";

/// All policies, compiled, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct AuthzIndex {
    root_namespace: Arc<str>,
    /// Own trust domain and aliases: what principals are compiled with.
    trust_domains: Vec<TrustDomain>,
    namespaces: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Entry>>,
}

/// One policy.
#[derive(Clone, Debug)]
struct Entry {
    /// What it was compiled from; `None`: one that was refused.
    object: Option<Arc<AuthorizationPolicy>>,
    selector: Labels,
    /// `None`: not in force.
    policy: Option<Arc<Policy>>,
    problems: Vec<Problem>,
}

/// Compiles all policies, taking over from `previous` what has not changed. Those of `closed`
/// were refused before they got here and have no earlier version in force: nobody knows what they
/// were meant to keep out, so everything is, from the workloads that they select.
pub(super) fn compile(
    policies: &[Arc<AuthorizationPolicy>],
    closed: &[FailClosed],
    mesh: &MeshSettings,
    previous: &AuthzIndex,
    problems: &mut Vec<Problem>,
) -> AuthzIndex {
    let trust_domains: Vec<TrustDomain> =
        std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).cloned().collect();
    let same_mesh = trust_domains == previous.trust_domains;
    let mut index = AuthzIndex {
        root_namespace: Arc::clone(&mesh.root_namespace),
        trust_domains,
        namespaces: BTreeMap::new(),
    };
    for object in policies {
        let metadata = &object.metadata;
        let key = ObjectKey::new(Kind::AuthorizationPolicy, &metadata.namespace, &metadata.name);
        let before = previous.get(&key);
        let unchanged = before.filter(|before| {
            same_mesh && before.object.as_ref().is_some_and(|o| Arc::ptr_eq(o, object))
        });
        let entry = match unchanged {
            Some(entry) => entry.clone(),
            None => compile_one(&key, object, &index.trust_domains).share(before),
        };
        problems.extend(entry.problems.iter().cloned());
        index.put(&key, entry);
    }
    for closed in closed {
        index.put(&closed.key, Entry::refused(closed).share(previous.get(&closed.key)));
    }
    index
}

impl AuthzIndex {
    /// The policies that select a workload: those of the root namespace and of its own, as far as
    /// their selectors fit.
    pub(super) fn for_workload(&self, workload: &Workload) -> Arc<AuthzSet> {
        let root = &*self.root_namespace;
        let own = (*workload.namespace != *root).then_some(&*workload.namespace);
        let policies = [Some(root), own]
            .into_iter()
            .flatten()
            .filter_map(|namespace| self.namespaces.get(namespace))
            .flat_map(BTreeMap::values)
            .filter(|entry| workload.labels.matches(&entry.selector))
            .filter_map(|entry| entry.policy.clone());
        Arc::new(AuthzSet::new(policies, root))
    }

    fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.namespaces.get(&key.namespace)?.get(&key.name)
    }

    fn put(&mut self, key: &ObjectKey, entry: Entry) {
        let policies = self.namespaces.entry(Arc::clone(&key.namespace)).or_default();
        policies.insert(Arc::clone(&key.name), entry);
    }
}

impl Entry {
    /// Denies everything.
    fn refused(closed: &FailClosed) -> Self {
        let rules = [Rule::default()].into();
        let policy = Policy { name: name_of(&closed.key), action: Action::Deny, rules };
        Self {
            object: None,
            selector: closed.selector.clone(),
            policy: Some(Arc::new(policy)),
            problems: Vec::new(),
        }
    }

    /// With the policy of `before`, should it be equal: whoever holds that goes on sharing it.
    fn share(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before.filter(|before| before.policy == self.policy) {
            self.policy.clone_from(&before.policy);
        }
        self
    }
}

fn name_of(key: &ObjectKey) -> PolicyName {
    PolicyName { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) }
}

fn compile_one(
    key: &ObjectKey,
    object: &Arc<AuthorizationPolicy>,
    trust_domains: &[TrustDomain],
) -> Entry {
    let mut problems = Vec::new();
    let report = &mut Report::new(key, &mut problems);
    let spec = &object.spec;
    let placed = spec.target_ref.is_none() && spec.target_refs.is_empty();
    let selector = spec.selector.as_ref().filter(|_| placed);
    let selector = selector.map(|s| labels(&s.match_labels)).unwrap_or_default();
    let policy = (!is_dry_run(object, report)).then(|| {
        let action = action(spec.action, placed, report);
        let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
            let compiler = RuleCompiler::new(action, &key.namespace, trust_domains, report);
            let mut rule = compiler.compile(rule, &format!("spec.rules[{i}]"));
            rule.never |= !placed && action == Action::Allow;
            rule
        });
        let rules = rules.collect();
        Arc::new(Policy { name: name_of(key), action, rules })
    });
    Entry { object: Some(Arc::clone(object)), selector, policy, problems }
}

/// The action, and what has to be said of it.
fn action(written: AuthorizationAction, placed: bool, report: &mut Report<'_>) -> Action {
    if !placed {
        // Whom it means is not known here: it must not allow anybody in the namespace anything,
        // and what it denies is denied in all of it.
        let consequence = match written {
            AuthorizationAction::Allow => "allows nothing",
            _ => "applies to every workload in it",
        };
        report.error(
            "spec.targetRefs",
            format!("not supported; the policy holds for its whole namespace and {consequence}"),
        );
    }
    match written {
        AuthorizationAction::Allow => Action::Allow,
        AuthorizationAction::Deny => Action::Deny,
        AuthorizationAction::Audit => Action::Audit,
        AuthorizationAction::Custom => {
            // As Istio does where the provider is missing.
            report.error("spec.action", "CUSTOM is not supported; what its rules match is denied");
            Action::Deny
        }
    }
}

/// Whether the policy is not to be in force (Go's `strconv.ParseBool`, as in Istio).
fn is_dry_run(object: &AuthorizationPolicy, report: &mut Report<'_>) -> bool {
    let Some(value) = object.metadata.annotations.get(DRY_RUN) else { return false };
    let field = format!("metadata.annotations[{DRY_RUN}]");
    match value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => {
            report.warning(field, "the policy is not in force; what it would do is not told yet");
            true
        }
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        other => {
            report.error(field, format!("{other:?}: true or false; the policy is in force"));
            false
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
