//! One service account's certificate with its key, and the TLS configurations that it yields.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_types::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::ca::{CaClient, CaError};
use crate::svid::{PeerSvid, SvidError, fingerprint};
use crate::tls::{self, TlsConfigError, Wire};
use crate::trust::{TrustBundle, TrustError};

/// A certificate of one service account, its private key (which never leaves this value) and the
/// trust bundle that came with it.
pub struct WorkloadCertificate {
    svid: PeerSvid,
    fingerprint: Arc<str>,
    chain: Vec<CertificateDer<'static>>,
    trust: TrustBundle,
    key: Arc<CertifiedKey>,
    native: Arc<ServerConfig>,
    hbone: Arc<ServerConfig>,
}

/// Why a certificate could not be obtained.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// This node could not make a key or a request.
    #[error("making a key and a signing request failed: {0}")]
    Request(String),
    /// The CA refused or could not be reached.
    #[error("CA: {0}")]
    Ca(#[from] CaError),
    /// What the CA delivered is not a certificate for the identity that was asked for.
    #[error("the CA delivered a certificate that cannot be used: {0}")]
    Delivered(String),
}

impl From<SvidError> for IssueError {
    fn from(e: SvidError) -> Self {
        Self::Delivered(e.to_string())
    }
}

impl From<TrustError> for IssueError {
    fn from(e: TrustError) -> Self {
        Self::Delivered(e.to_string())
    }
}

impl From<TlsConfigError> for IssueError {
    fn from(e: TlsConfigError) -> Self {
        Self::Delivered(e.to_string())
    }
}

/// A key with what a CA delivered for it.
pub(crate) struct Material {
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Material {
    /// Makes a fresh key and has `ca` certify it for `id`.
    pub(crate) async fn obtain(
        ca: &dyn CaClient,
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<Self, IssueError> {
        let request = |e: rcgen::Error| IssueError::Request(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(request)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let csr = params.serialize_request(&key).map_err(request)?;
        let signed = ca.sign(csr.der(), id, ttl).await?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Self { key, chain: signed.chain, roots: signed.roots })
    }
}

impl WorkloadCertificate {
    /// Makes a fresh key and has `ca` certify it for `id`.
    ///
    /// # Errors
    /// [`IssueError`] says whether this node, the CA or its answer is to blame.
    pub async fn issue(
        ca: &dyn CaClient,
        id: &SpiffeId,
        ttl: Duration,
        aliases: &[TrustDomain],
    ) -> Result<Self, IssueError> {
        Self::assemble(Material::obtain(ca, id, ttl).await?, id, aliases)
    }

    /// Makes usable what a CA delivered (now, or to an earlier daemon), if it is what `id` needs:
    /// the certificate is for `id` and this key, and verifies to the roots at this moment.
    pub(crate) fn assemble(
        material: Material,
        id: &SpiffeId,
        aliases: &[TrustDomain],
    ) -> Result<Self, IssueError> {
        let trust = TrustBundle::new(&material.roots, id.trust_domain(), aliases)?;
        let leaf = material
            .chain
            .first()
            .ok_or_else(|| IssueError::Delivered("the chain is empty".into()))?;
        let svid = PeerSvid::from_der(leaf)?;
        if svid.id != *id {
            return Err(IssueError::Delivered(format!("it is for {}, not {id}", svid.id)));
        }
        let fingerprint = fingerprint(leaf);
        let der = PrivateKeyDer::Pkcs8(material.key);
        let certified = CertifiedKey::from_der(material.chain.clone(), der, tls::provider())
            .map_err(|e| IssueError::Delivered(e.to_string()))?;
        // `from_der` compares the keys where it can; an answer for another key must not pass.
        certified.keys_match().map_err(|e| IssueError::Delivered(e.to_string()))?;
        let certified = Arc::new(certified);
        Ok(Self {
            native: tls::server_config(&certified, &trust, Wire::Native)?,
            hbone: tls::server_config(&certified, &trust, Wire::Hbone)?,
            svid,
            fingerprint,
            chain: material.chain,
            trust,
            key: certified,
        })
    }

    /// The same certificate under other roots or with other trust domains accepted: for new
    /// sessions. `roots`: `None` leaves them.
    pub(crate) fn with_trust(
        &self,
        roots: Option<&[CertificateDer<'static>]>,
        aliases: &[TrustDomain],
    ) -> Result<Self, IssueError> {
        let domain = self.svid.id.trust_domain();
        let trust = match roots {
            Some(roots) => TrustBundle::new(roots, domain, aliases)?,
            None => self.trust.with_domains(domain, aliases),
        };
        Ok(Self {
            native: tls::server_config(&self.key, &trust, Wire::Native)?,
            hbone: tls::server_config(&self.key, &trust, Wire::Hbone)?,
            svid: self.svid.clone(),
            fingerprint: Arc::clone(&self.fingerprint),
            chain: self.chain.clone(),
            trust,
            key: Arc::clone(&self.key),
        })
    }

    /// Whether the certificate verifies to the roots now.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn verify(&self) -> Result<(), IssueError> {
        let (leaf, intermediates) = self
            .chain
            .split_first()
            .ok_or_else(|| IssueError::Delivered("the chain is empty".into()))?;
        tls::verify_chain(leaf, intermediates, &self.trust)
            .map_err(|e| IssueError::Delivered(tls::explain(&e)))
    }

    /// Whom the certificate speaks for.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// Start of validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.svid.not_before
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.svid.not_after
    }

    /// Serial number, lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.svid.serial
    }

    /// SHA-256 of the leaf, lower-case hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// Whom this workload trusts.
    #[must_use]
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// The configuration for accepting sessions as this workload.
    #[must_use]
    pub fn server_config(&self, wire: Wire) -> Arc<ServerConfig> {
        match wire {
            Wire::Native => self.native.clone(),
            Wire::Hbone => self.hbone.clone(),
        }
    }

    /// The configuration for opening a session as this workload to one of `expected`.
    ///
    /// # Errors
    /// Nobody is expected.
    pub fn client_config(
        &self,
        wire: Wire,
        expected: Arc<[SpiffeId]>,
    ) -> Result<Arc<ClientConfig>, TlsConfigError> {
        tls::client_config(&self.key, &self.trust, wire, expected)
    }

    /// The public facts.
    #[must_use]
    pub fn info(&self) -> CertificateInfo {
        CertificateInfo {
            id: self.svid.id.clone(),
            serial: self.svid.serial.clone(),
            not_before: self.svid.not_before,
            not_after: self.svid.not_after,
            chain_pem: self
                .chain
                .iter()
                .map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref())))
                .collect(),
            trusted_roots: self.trust.roots().len(),
        }
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate").field("svid", &self.svid).finish_non_exhaustive()
    }
}

/// What the admin API shows of a certificate: everything but the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it speaks for.
    pub id: SpiffeId,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Leaf first, then intermediates, PEM.
    pub chain_pem: String,
    /// How many roots peers may come from: two while one replaces the other.
    pub trusted_roots: usize,
}
