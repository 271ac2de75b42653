//! Reading the authority of a request: host without port, in lower case, and the services that it
//! may name. Nothing here allocates.

/// Longest host that is looked at (RFC 1035 section 2.3.4 allows 255 octets on the wire).
const MAX_HOST: usize = 255;

/// The host of an authority: without user information, port and the brackets of an IPv6 literal.
/// `None` when there is none.
pub(super) fn host_of(authority: &str) -> Option<&str> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if let Some(rest) = host.strip_prefix('[') {
        rest.split_once(']')?.0
    } else {
        host.rsplit_once(':').map_or(host, |(host, _)| host)
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

/// A host in lower case, on the stack.
pub(super) struct Resolved {
    bytes: [u8; MAX_HOST],
    len: usize,
}

impl Resolved {
    /// `None` when the host is longer than any name can be, or is not ASCII.
    pub(super) fn new(host: &str) -> Option<Self> {
        if host.len() > MAX_HOST || !host.is_ascii() {
            return None;
        }
        let mut bytes = [0; MAX_HOST];
        for (to, from) in bytes.iter_mut().zip(host.bytes()) {
            *to = from.to_ascii_lowercase();
        }
        Some(Self { bytes, len: host.len() })
    }

    pub(super) fn as_str(&self) -> &str {
        // The bytes are ASCII, checked at construction.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    /// The (namespace, name) pairs that the host may mean.
    pub(super) fn services<'a>(
        &'a self,
        source_namespace: &'a str,
        cluster_domain: &str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        service_of(self.as_str(), source_namespace, cluster_domain).into_iter()
    }
}

/// The (namespace, name) of the service that `host` (lower case) means for a client in
/// `source_namespace`: `name`, `name.namespace`, `name.namespace.svc`,
/// `name.namespace.svc.<cluster domain>`.
pub(crate) fn service_of<'a>(
    host: &'a str,
    source_namespace: &'a str,
    cluster_domain: &str,
) -> Option<(&'a str, &'a str)> {
    let short = host
        .strip_suffix(cluster_domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
        .or_else(|| host.strip_suffix(".svc"))
        .unwrap_or(host);
    let qualified = short.len() != host.len();
    match short.split_once('.') {
        Some((name, namespace)) if !namespace.contains('.') => Some((namespace, name)),
        None if !qualified => Some((source_namespace, short)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("reviews", Some("reviews")),
            ("reviews:9080", Some("reviews")),
            ("reviews.default.svc.cluster.local.", Some("reviews.default.svc.cluster.local")),
            ("[fd00::1]:80", Some("fd00::1")),
            ("user@reviews:1", Some("reviews")),
            ("", None),
            (":80", None),
            ("[fd00::1", None),
        ] {
            assert_eq!(host_of(authority), host, "{authority:?}");
        }
    }

    #[test]
    fn services() {
        for (host, service) in [
            ("reviews", Some(("here", "reviews"))),
            ("reviews.there", Some(("there", "reviews"))),
            ("reviews.there.svc", Some(("there", "reviews"))),
            ("reviews.there.svc.cluster.local", Some(("there", "reviews"))),
            ("reviews.svc.cluster.local", None),
            ("reviews.svc", None),
            ("a.b.example.com", None),
            ("pod-0.reviews.there.svc.cluster.local", None),
        ] {
            assert_eq!(service_of(host, "here", "cluster.local"), service, "{host:?}");
        }
    }
}
