//! The clients of this node as DestinationRules tell them apart.

use std::sync::Arc;

/// Clients that the same resources apply to: those of a namespace, or, where rules with a
/// `workloadSelector` choose some of its pods, those that the same rules choose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Client {
    /// `<namespace>`, or `<namespace>/<rule>,<rule>`: neither sign can be in such a name.
    name: Arc<str>,
    /// Where the namespace ends.
    namespace: usize,
}

impl Client {
    /// The pods of `namespace` that the rules of these names choose, in order of names.
    pub(super) fn new(namespace: &Arc<str>, rules: &[&str]) -> Self {
        let name = match rules {
            [] => Arc::clone(namespace),
            rules => format!("{namespace}/{}", rules.join(",")).into(),
        };
        Self { name, namespace: namespace.len() }
    }

    /// What sets it apart, for the snapshot.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The namespace of all of them.
    pub(super) fn namespace(&self) -> &str {
        &self.name[..self.namespace]
    }

    /// Whether any rule chooses them.
    pub(super) fn is_chosen(&self) -> bool {
        self.name.len() > self.namespace
    }

    /// Whether the rule of this name in their namespace chooses them.
    pub(super) fn is_chosen_by(&self, rule: &str) -> bool {
        let rules = self.name.get(self.namespace + 1..);
        rules.is_some_and(|rules| rules.split(',').any(|chosen| chosen == rule))
    }
}

/// The namespace of clients; `None` stays the one that no resource names.
pub(super) fn namespace_of(client: Option<&Client>) -> Option<&str> {
    client.map(Client::namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let namespace = Arc::from("shop");
        let all = Client::new(&namespace, &[]);
        assert_eq!((&**all.name(), all.namespace(), all.is_chosen()), ("shop", "shop", false));
        assert!(!all.is_chosen_by("a") && !all.is_chosen_by(""));
        let some = Client::new(&namespace, &["a", "b.c"]);
        assert_eq!((&**some.name(), some.namespace()), ("shop/a,b.c", "shop"));
        assert!(some.is_chosen() && some.is_chosen_by("a") && some.is_chosen_by("b.c"));
        assert!(!some.is_chosen_by("b") && !some.is_chosen_by("a,b.c"));
        assert_ne!(all, some);
    }
}
