//! Host names: how Istio completes short ones, and which patterns match a host.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::ServiceRef;

/// A host as VirtualService and DestinationRule write it, completed and in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum HostPattern {
    /// One host.
    Exact(Arc<str>),
    /// What follows the `*` (`.example.com`; empty for `*` alone).
    Wildcard(Arc<str>),
}

impl HostPattern {
    /// Reads `host` of an object in `namespace`.
    pub(super) fn new(host: &str, namespace: &str, domain: &str) -> Self {
        match host.strip_prefix('*') {
            Some(rest) => Self::Wildcard(rest.to_ascii_lowercase().into()),
            None => Self::Exact(complete(host, namespace, domain)),
        }
    }

    /// Whether `host` (complete, lower case) is meant.
    pub(super) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *host,
            Self::Wildcard(suffix) => host.ends_with(&**suffix),
        }
    }

    /// Whether every host that `other` means is meant.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(host)) => self.matches(host),
            (Self::Wildcard(own), Self::Wildcard(suffix)) => suffix.ends_with(&**own),
            (Self::Exact(_), Self::Wildcard(_)) => false,
        }
    }

    /// As it is written.
    pub(super) fn display(&self) -> Arc<str> {
        match self {
            Self::Exact(host) => Arc::clone(host),
            Self::Wildcard(suffix) => format!("*{suffix}").into(),
        }
    }
}

/// Completes a short name with `namespace`; a name with a dot, or an address, is complete (Istio
/// `ResolveShortnameToFQDN`).
pub(super) fn complete(host: &str, namespace: &str, domain: &str) -> Arc<str> {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.parse::<IpAddr>().is_ok() {
        host.into()
    } else {
        service_host(namespace, &host, domain)
    }
}

/// The full host of a service.
pub(super) fn service_host(namespace: &str, name: &str, domain: &str) -> Arc<str> {
    format!("{name}.{namespace}.svc.{domain}").into()
}

/// The service that a complete host names, whether or not it exists.
pub(super) fn service_of<'a>(host: &'a str, domain: &str) -> Option<ServiceRef<'a>> {
    let short = host.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = short.split_once('.')?;
    (!name.is_empty() && !namespace.contains('.')).then_some(ServiceRef { namespace, name })
}

/// `exportTo`: the namespaces whose clients see a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExportTo {
    /// All (`*`, or nothing said).
    All,
    /// These.
    Namespaces(Box<[Arc<str>]>),
}

impl ExportTo {
    /// Reads `exportTo` of an object in `namespace`; what says nothing says what is in `default`
    /// (MeshConfig's `defaultVirtualServiceExportTo` and its like).
    pub(super) fn new(entries: &[String], default: &[String], namespace: &str) -> Self {
        let entries = if entries.is_empty() { default } else { entries };
        if entries.is_empty() || entries.iter().any(|entry| entry == "*") {
            return Self::All;
        }
        let own: Arc<str> = namespace.into();
        Self::Namespaces(
            entries
                .iter()
                .filter(|entry| *entry != "~")
                .map(|entry| if entry == "." { Arc::clone(&own) } else { entry.as_str().into() })
                .collect(),
        )
    }

    /// Whether clients in `client` see it; `None` stands for a namespace that no resource names.
    pub(super) fn is_visible(&self, client: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(namespaces) => {
                client.is_some_and(|client| namespaces.iter().any(|n| **n == *client))
            }
        }
    }

    /// The namespaces that are named.
    pub(super) fn named(&self) -> &[Arc<str>] {
        match self {
            Self::All => &[],
            Self::Namespaces(namespaces) => namespaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "cluster.local";

    #[test]
    fn short_names_are_completed() {
        for (host, complete_host) in [
            ("reviews", "reviews.bookinfo.svc.cluster.local"),
            ("Reviews", "reviews.bookinfo.svc.cluster.local"),
            ("reviews.other", "reviews.other"),
            ("bookinfo.example.com", "bookinfo.example.com"),
            ("10.1.2.3", "10.1.2.3"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(&*complete(host, "bookinfo", DOMAIN), complete_host);
        }
    }

    #[test]
    fn services_are_recognised() {
        let service = service_of("reviews.bookinfo.svc.cluster.local", DOMAIN);
        assert_eq!(service, Some(ServiceRef { namespace: "bookinfo", name: "reviews" }));
        for other in
            ["reviews.bookinfo", "a.b.c.svc.cluster.local", "example.com", "svc.cluster.local"]
        {
            assert_eq!(service_of(other, DOMAIN), None, "{other}");
        }
    }

    #[test]
    fn wildcards_match_suffixes() {
        let pattern = HostPattern::new("*.bookinfo.svc.cluster.local", "x", DOMAIN);
        assert!(pattern.matches("reviews.bookinfo.svc.cluster.local"));
        assert!(!pattern.matches("reviews.other.svc.cluster.local"));
        assert!(HostPattern::new("*", "x", DOMAIN).matches("anything"));
    }

    #[test]
    fn exports() {
        let list = |entries: &[&str]| entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
        for (entries, own, other, unnamed) in [
            (&[][..], true, true, true),
            (&["*"], true, true, true),
            (&["."], true, false, false),
            (&["other"], false, true, false),
            (&[".", "other"], true, true, false),
            (&["~"], false, false, false),
        ] {
            let export = ExportTo::new(&list(entries), &[], "own");
            assert_eq!(export.is_visible(Some("own")), own, "{entries:?}");
            assert_eq!(export.is_visible(Some("other")), other, "{entries:?}");
            assert_eq!(export.is_visible(None), unnamed, "{entries:?}");
        }
    }
}
