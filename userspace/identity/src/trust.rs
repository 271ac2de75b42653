//! Whom the mesh trusts: root certificates and the trust domains that they may speak for.

use std::sync::Arc;

use fairlead_types::TrustDomain;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Root certificates together with the trust domains that are accepted under them
/// (MeshConfig `trustDomain` and `trustDomainAliases`). Never without a root or a domain.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Arc<RootCertStore>,
    domains: Arc<[TrustDomain]>,
}

/// Why there is no bundle. To blame: the CA that delivered the roots.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No root at all.
    #[error("the CA delivered no root certificate")]
    NoRoot,
    /// A root is not a certificate.
    #[error("a root certificate is not usable: {0}")]
    BadRoot(rustls::Error),
}

impl TrustBundle {
    /// A bundle of `roots` for `domain` and its `aliases`.
    ///
    /// # Errors
    /// No root, or one that cannot be parsed.
    pub fn new(
        roots: &[CertificateDer<'static>],
        domain: &TrustDomain,
        aliases: &[TrustDomain],
    ) -> Result<Self, TrustError> {
        let domains = std::iter::once(domain).chain(aliases).cloned().collect();
        Ok(Self { roots: Arc::new(store(roots)?), domains })
    }

    /// Whether `roots` could be those of a bundle.
    pub(crate) fn check(roots: &[CertificateDer<'static>]) -> Result<(), TrustError> {
        store(roots).map(drop)
    }

    /// Whether it has exactly these roots.
    pub(crate) fn is_of(&self, roots: &[CertificateDer<'static>]) -> bool {
        store(roots).is_ok_and(|store| {
            store.len() == self.roots.len()
                && store.roots.iter().all(|root| self.roots.roots.contains(root))
        })
    }

    /// The same roots for other domains.
    pub(crate) fn with_domains(&self, domain: &TrustDomain, aliases: &[TrustDomain]) -> Self {
        let domains = std::iter::once(domain).chain(aliases).cloned().collect();
        Self { roots: Arc::clone(&self.roots), domains }
    }

    /// Whether identities of `domain` are of this mesh.
    #[must_use]
    pub fn accepts(&self, domain: &TrustDomain) -> bool {
        self.domains.contains(domain)
    }

    /// The accepted trust domains, the mesh's own first.
    #[must_use]
    pub fn domains(&self) -> &[TrustDomain] {
        &self.domains
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TrustError> {
    if roots.is_empty() {
        return Err(TrustError::NoRoot);
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(TrustError::BadRoot)?;
    }
    Ok(store)
}

/// Takes the root off the end of a chain as CAs deliver it (Istio's `IstioCertificateResponse`
/// ends with it): a certificate after the leaf that is issued by itself.
#[must_use]
pub fn split_root(
    mut chain: Vec<CertificateDer<'static>>,
) -> (Vec<CertificateDer<'static>>, Option<CertificateDer<'static>>) {
    let is_root = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, c)| c.subject() == c.issuer())
    };
    let root = chain.pop_if(|last| is_root(last));
    if chain.is_empty() {
        // A leaf that is its own root is nobody's.
        return (root.into_iter().collect(), None);
    }
    (chain, root)
}
