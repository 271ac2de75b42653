//! What clients of a namespace see: `exportTo` of the others, `egress.hosts` of their own Sidecar.
//!
//! A node is one client of the controller for all its pods, so what is asked here is asked for
//! namespaces: a Sidecar that selects some workloads adds to what the namespace may reach, and
//! the node's compiler takes it from there.

use std::sync::Arc;

use serde_json::Value;

/// `exportTo`: whose clients see an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Export {
    /// Nothing is said: what MeshConfig has as default.
    #[default]
    Default,
    /// All.
    All,
    /// These namespaces'.
    Namespaces(Box<[Arc<str>]>),
}

impl Export {
    /// Reads the entries of an object in `namespace`: `*`, `.`, `~` or names.
    pub(crate) fn new<'e>(entries: impl Iterator<Item = &'e str>, namespace: &str) -> Self {
        let (mut named, mut said) = (Vec::new(), false);
        for entry in entries {
            said = true;
            match entry {
                "*" => return Self::All,
                "." => named.push(namespace.into()),
                "~" => {}
                name => named.push(name.into()),
            }
        }
        if said { Self::Namespaces(named.into()) } else { Self::Default }
    }

    /// Whether clients in `client` see it, where the default is all.
    pub(crate) fn is_visible(&self, client: &str) -> bool {
        match self {
            Self::Default | Self::All => true,
            Self::Namespaces(namespaces) => namespaces.iter().any(|n| **n == *client),
        }
    }
}

/// `egress` of a Sidecar: what may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress(Vec<(Of, HostMatch)>);

/// The namespace of what may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Of {
    Any,
    /// The client's, which may be another than that of the Sidecar if that is in the root
    /// namespace.
    Own,
    Named(Arc<str>),
}

impl Of {
    fn is(&self, namespace: &str, client: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Own => namespace == client,
            Self::Named(name) => **name == *namespace,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostMatch {
    Any,
    /// Ends in this, dot included.
    Suffix(Box<str>),
    Exact(Box<str>),
}

impl HostMatch {
    fn new(name: &str) -> Self {
        match name.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.to_ascii_lowercase().into()),
            None => Self::Exact(name.to_ascii_lowercase().into()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Suffix(suffix) => host.ends_with(&**suffix),
            Self::Exact(name) => **name == *host,
        }
    }
}

impl Egress {
    /// Reads `spec.egress` of a Sidecar; `None` if it has none: then all may be reached, as
    /// without a Sidecar.
    pub(crate) fn read(spec: &Value) -> Option<Self> {
        let listeners = spec.get("egress")?.as_array().filter(|listeners| !listeners.is_empty())?;
        let hosts = listeners.iter().filter_map(|listener| listener.get("hosts")?.as_array());
        let hosts = hosts.flatten().filter_map(Value::as_str);
        let read = |entry: &str| {
            // An entry without a namespace means any (Istio `parseHost`).
            let (of, name) = entry.split_once('/').unwrap_or(("*", entry));
            let of = match of {
                "~" => return None,
                "*" => Of::Any,
                "." => Of::Own,
                name => Of::Named(name.into()),
            };
            Some((of, HostMatch::new(name)))
        };
        Some(Self(hosts.filter_map(read).collect()))
    }

    /// Whether something in `namespace` may be reached.
    fn namespace(&self, namespace: &str, client: &str) -> bool {
        self.0.iter().any(|(of, _)| of.is(namespace, client))
    }

    /// Whether a service may be reached.
    fn host(&self, namespace: &str, host: &str, client: &str) -> bool {
        self.0.iter().any(|(of, name)| of.is(namespace, client) && name.matches(host))
    }
}

/// What the pods of a namespace may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Whatever is exported to them.
    #[default]
    All,
    /// What any of these names.
    Some(Vec<Egress>),
}

impl Reach {
    /// Whether something in `namespace` may be reached from `client`.
    pub(crate) fn namespace(&self, namespace: &str, client: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(all) => all.iter().any(|egress| egress.namespace(namespace, client)),
        }
    }

    /// Whether the service with that host in `namespace` may be reached from `client`.
    pub(crate) fn host(&self, namespace: &str, host: &str, client: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(all) => all.iter().any(|egress| egress.host(namespace, host, client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn export_to() {
        let export = |entries: &[&str]| Export::new(entries.iter().copied(), "own");
        assert_eq!(export(&[]), Export::Default);
        assert_eq!(export(&["a", "*"]), Export::All);
        let some = export(&[".", "a"]);
        assert!(some.is_visible("own") && some.is_visible("a") && !some.is_visible("b"));
        assert!(!export(&["~"]).is_visible("own"));
    }

    #[test]
    fn egress_hosts() {
        let spec = json!({"egress": [
            {"hosts": ["./*", "other/a.other.svc.cluster.local", "*/*.example.com"]},
            {"hosts": ["~/*"]}
        ]});
        let reach = Reach::Some(vec![Egress::read(&spec).expect("egress")]);
        assert!(reach.host("own", "x.own.svc.cluster.local", "own"));
        assert!(!reach.host("own", "x.own.svc.cluster.local", "another"));
        assert!(reach.host("other", "a.other.svc.cluster.local", "own"));
        assert!(!reach.host("other", "b.other.svc.cluster.local", "own"));
        assert!(reach.host("third", "www.example.com", "own"));
        assert!(!reach.host("third", "x.third", "own"));
        assert!(reach.namespace("third", "own"), "a wildcard is in any namespace");
        let own = json!({"egress": [{"hosts": ["./*"]}]});
        let reach = Reach::Some(vec![Egress::read(&own).expect("egress")]);
        assert!(reach.namespace("own", "own") && !reach.namespace("other", "own"));
        assert_eq!(Egress::read(&json!({"egress": []})), None);
        assert_eq!(Egress::read(&json!({})), None);
    }
}
