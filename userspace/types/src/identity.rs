//! Workload identities in the form that Istio gives them:
//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE trust domain, lower case, without scheme (SPIFFE-ID section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, which Istio uses unless it is told otherwise.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, IdentityError> {
        let valid =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > 255 || !s.bytes().all(valid) {
            return Err(IdentityError::TrustDomain(s.chars().take(64).collect()));
        }
        Ok(Self(s.into()))
    }
}

/// The identity of a service account.
///
/// Text form: `spiffe://cluster.local/ns/default/sa/reviews`. Istio writes the same without the
/// scheme in AuthorizationPolicy principals.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    /// An identity from its parts; both names must be non-empty DNS-1123 text.
    ///
    /// # Errors
    /// [`IdentityError::Segment`] names the part that is not valid.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        for segment in [namespace, service_account] {
            let valid =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
            if segment.is_empty() || segment.len() > 253 || !segment.bytes().all(valid) {
                return Err(IdentityError::Segment(segment.chars().take(64).collect()));
            }
        }
        Ok(Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The principal as Istio's AuthorizationPolicy writes it: the URI without `spiffe://`.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({self})")
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape(s.chars().take(128).collect());
        let rest = s.strip_prefix("spiffe://").ok_or_else(shape)?;
        let mut parts = rest.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) => {
                Self::new(td.parse()?, ns, sa)
            }
            _ => Err(shape()),
        }
    }
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not `spiffe://<td>/ns/<ns>/sa/<sa>`.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<account>")]
    Shape(String),
    /// The trust domain is empty, too long or has a character that SPIFFE forbids.
    #[error("{0:?} is not a valid trust domain: lower-case letters, digits, '.', '-', '_'")]
    TrustDomain(String),
    /// The namespace or service account is not a DNS-1123 name.
    #[error("{0:?} is not a valid namespace or service account name")]
    Segment(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/reviews");
        assert_eq!(
            (id.namespace(), id.service_account(), id.trust_domain().as_str()),
            ("default", "reviews", "cluster.local")
        );
    }

    #[test]
    fn hostile_forms_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a%2fb/sa/c",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was taken");
        }
    }
}
