//! The certificate authority as the node sees it: something that signs requests.
//!
//! [`CaDirectory`] is the one of standalone nodes. A remote CA (Kubernetes) implements
//! [`CaClient`] and nothing else changes. What signs behind either is an [`Authority`].

mod authority;
mod directory;
mod files;
mod request;
mod set;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use fairlead_types::SpiffeId;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

pub use authority::{Authority, ServingCertificate};
pub use directory::CaDirectory;
pub use request::{MAX_REQUEST_BYTES, SigningRequest};
pub use set::{
    CA_CERT, CA_KEY, CERT_CHAIN, CaSet, CaSetError, ROOT_CERT, ROOT_KEY, certificate_end,
    certificate_pem, pem_certificates,
};

/// A certificate as a CA delivers it.
#[derive(Clone, Debug)]
pub struct SignedCertificate {
    /// Leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that the mesh trusts.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a CA did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The CA cannot be reached; trying again may help.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// The request is not acceptable; trying the same again will not help.
    #[error("refused: {0}")]
    Refused(String),
    /// A file of the CA directory cannot be read or written.
    #[error("{}: {message}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The CA's own certificate or key is not usable.
    #[error("the CA itself is not usable: {0}")]
    Broken(String),
}

/// The future of [`CaClient::sign`]. Boxed: one per certificate, so that a node can hold any CA.
pub type SignFuture<'a> =
    Pin<Box<dyn Future<Output = Result<SignedCertificate, CaError>> + Send + 'a>>;

/// Something that signs.
pub trait CaClient: Send + Sync + 'static {
    /// Certifies the key of `csr` for `id`, for `ttl` from now. The names in the request are not
    /// authoritative: the certificate is for `id` or there is none.
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a>;
}
