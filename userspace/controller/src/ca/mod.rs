//! The certificate authority of the mesh.
//!
//! It lives in Secrets of the controller's namespace, watched, so that a swap takes effect in every
//! replica without a restart:
//! - `fairlead-ca-secret`: a root and an intermediate, made on first use;
//! - `cacerts`: roots of one's own, as Istio reads them ("Plug in CA Certificates"), or in the shape
//!   of cert-manager (`tls.crt`, `tls.key`, `ca.crt`). Where it is there, it signs.
//!
//! **Whom the mesh trusts** is the union of `root-cert.pem` of both Secrets and of `extra-roots.pem`
//! of either. So the root made here stays trusted beside one's own until its Secret is deleted, and
//! a root is exchanged in three steps without an error: put the new one beside the old one (in
//! `root-cert.pem` or `extra-roots.pem`); let the new one sign; take the old one away when the last
//! certificate below it has ended.
//!
//! When a new authority appears whose root nobody trusts yet, its root is published first, and it
//! signs a little later ([`CaSettings::settle`]).

mod limit;
mod metrics;
mod plan;
pub mod publish;
mod secrets;
mod service;
mod serving;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use fairlead_identity::Authority;
use fairlead_identity::ca::certificate_pem;
use fairlead_types::TrustDomain;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

pub use metrics::CaMetrics;
pub use secrets::Secrets;
pub use service::{CertificateService, Pods, ServiceSettings};
pub use serving::{Serving, ServingSettings};

/// The Secret of the CA that is made here.
pub const OWN_SECRET: &str = "fairlead-ca-secret";
/// The Secret of roots of one's own, as in Istio.
pub const CACERTS_SECRET: &str = "cacerts";
/// Key in either Secret: more roots that are trusted, PEM.
pub const EXTRA_ROOTS: &str = "extra-roots.pem";
/// The ConfigMap that nodes read the roots from, and its key.
pub const ROOT_CONFIG_MAP: &str = "fairlead-ca-root-cert";
/// Key in [`ROOT_CONFIG_MAP`], as in Istio's `istio-ca-root-cert`.
pub const ROOT_CONFIG_MAP_KEY: &str = "root-cert.pem";

/// Settings of the authority.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// The namespace of the Secrets.
    pub namespace: String,
    /// The trust domain that a CA made here names.
    pub trust_domain: TrustDomain,
    /// How long the roots of a new authority are published before it signs.
    pub settle: Duration,
}

impl CaSettings {
    /// The usual ones.
    #[must_use]
    pub fn new(namespace: impl Into<String>, trust_domain: TrustDomain) -> Self {
        Self { namespace: namespace.into(), trust_domain, settle: Duration::from_secs(10) }
    }
}

/// The certificates that the mesh trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// As DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// The same as PEM, one after the other.
    pub pem: String,
}

impl Bundle {
    /// A bundle; what is there twice counts once.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut bundle = Self::default();
        for root in roots {
            if !bundle.roots.contains(&root) {
                bundle.pem.push_str(&certificate_pem(&root));
                bundle.roots.push(root);
            }
        }
        bundle
    }
}

/// The authority as it is now, shared by all that sign.
#[derive(Default)]
pub struct Ca {
    signer: ArcSwapOption<Authority>,
    bundle: watch::Sender<Arc<Bundle>>,
    /// Counts the authorities that signed.
    generation: watch::Sender<u64>,
    /// Counters.
    pub metrics: CaMetrics,
}

impl Ca {
    /// Nothing yet: [`Secrets::run`] fills it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What signs; `None` until the Secrets were read.
    #[must_use]
    pub fn signer(&self) -> Option<Arc<Authority>> {
        self.signer.load_full()
    }

    /// Whether certificates can be signed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.signer.load().is_some()
    }

    /// Whom the mesh trusts; empty until the Secrets were read. Tells of changes.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundle.subscribe()
    }

    /// Tells when another authority signs: certificates of the old one had better be renewed.
    #[must_use]
    pub fn signer_changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn publish(&self, bundle: Bundle) {
        self.bundle.send_if_modified(|current| {
            let changed = **current != bundle;
            if changed {
                tracing::info!(roots = bundle.roots.len(), "publishing the roots that are trusted");
                *current = Arc::new(bundle);
            }
            changed
        });
    }

    fn sign_with(&self, authority: Arc<Authority>) {
        self.signer.store(Some(authority));
        self.generation.send_modify(|n| *n += 1);
    }
}

/// For tests and for tools that bring an authority of their own.
impl From<Authority> for Ca {
    fn from(authority: Authority) -> Self {
        let ca = Self::default();
        ca.publish(Bundle::new(authority.roots().to_vec()));
        ca.sign_with(Arc::new(authority));
        ca
    }
}
