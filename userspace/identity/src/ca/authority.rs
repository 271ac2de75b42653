//! What signs: one code for the directory of a node without Kubernetes and for the controller.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_types::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::set::{
    CA_CERT, CA_KEY, CERT_CHAIN, CaSet, CaSetError, RENEW_INTERMEDIATE, ROOT_CERT, pem_certificates,
};
use super::{CaError, SignedCertificate, SigningRequest};
use crate::random;
use crate::svid::from_unix;
use crate::tls;

/// Certificates begin this much in the past, so that a peer whose clock runs behind takes them.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// No certificate lives longer, whatever the settings say (Istio's `MAX_WORKLOAD_CERT_TTL` is 90
/// days).
const MAX_TTL: Duration = Duration::from_secs(90 * 86_400);

/// A CA that is ready to sign: its texts fit together, and what it signs verifies to its roots.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
}

/// A server's certificate with its key, for listeners that are no workload of the mesh.
#[derive(Clone)]
pub struct ServingCertificate {
    /// For a rustls resolver.
    pub key: Arc<CertifiedKey>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Authority {
    /// Reads and checks a set.
    ///
    /// # Errors
    /// Which of the texts cannot be used, and why.
    pub fn new(set: &CaSet) -> Result<Self, CaSetError> {
        let certificates = |name, text: &str| {
            pem_certificates(text.as_bytes()).map_err(|message| CaSetError { name, message })
        };
        let ca_cert = certificates(CA_CERT, &set.ca_cert)?.swap_remove(0);
        let roots = certificates(ROOT_CERT, &set.root_cert)?;
        let key = KeyPair::from_pem(&set.ca_key)
            .map_err(|e| err(CA_KEY, format!("not a private key: {e}")))?;
        let parsed = X509Certificate::from_der(&ca_cert)
            .map_err(|e| err(CA_CERT, format!("not a certificate: {e}")))?
            .1;
        if !parsed.is_ca() {
            return Err(err(CA_CERT, "not a CA certificate (basicConstraints CA:TRUE)"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(err(CA_KEY, format!("not the key of {CA_CERT}")));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        if from_unix(not_after.unix_timestamp()) <= SystemTime::now() {
            return Err(err(CA_CERT, "the CA certificate has expired"));
        }
        // Istio's cert-chain.pem begins with ca-cert.pem and may end with the root; peers have
        // the roots, so they are not sent.
        let rest = if set.cert_chain.trim().is_empty() {
            Vec::new()
        } else {
            certificates(CERT_CHAIN, &set.cert_chain)?
        };
        let mut intermediates: Vec<CertificateDer<'static>> = Vec::new();
        for cert in std::iter::once(ca_cert.clone()).chain(rest) {
            if !roots.contains(&cert) && !intermediates.contains(&cert) {
                intermediates.push(cert);
            }
        }
        let issuer = Issuer::from_ca_cert_der(&ca_cert, key).map_err(|e| err(CA_CERT, e))?;
        let authority =
            Self { certificate: ca_cert.clone(), issuer, intermediates, roots, not_after };
        authority.prove(&authority.roots).map_err(|e| {
            err(ROOT_CERT, format!("what {CA_CERT} signs does not verify to it: {e}"))
        })?;
        Ok(authority)
    }

    /// Signs a certificate for nobody and verifies it as a peer would.
    fn prove(&self, roots: &[CertificateDer<'static>]) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| text(&e))?;
        let mut params = leaf_params().map_err(|e| text(&e))?;
        params.subject_alt_names =
            vec![SanType::DnsName("nobody.invalid".try_into().map_err(|e| text(&e))?)];
        let leaf = self.finish(params, &key, Duration::from_secs(60)).map_err(|e| text(&e))?;
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|e| text(&e))?;
        }
        WebPkiClientVerifier::builder_with_provider(store.into(), Arc::clone(tls::provider()))
            .build()
            .map_err(|e| text(&e))?
            .verify_client_cert(&leaf, &self.intermediates, UnixTime::now())
            .map_err(|e| text(&e))?;
        Ok(())
    }

    /// The roots that certificates of this CA verify to.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Whether both sign with the same certificate towards the same roots.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.certificate, &self.intermediates, &self.roots)
            == (&other.certificate, &other.intermediates, &other.roots)
    }

    /// Whether certificates of this CA verify to one of `roots`, which may be more or fewer than
    /// its own.
    #[must_use]
    pub fn verifies_to(&self, roots: &[CertificateDer<'static>]) -> bool {
        !roots.is_empty() && self.prove(roots).is_ok()
    }

    /// When the signing certificate ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        from_unix(self.not_after.unix_timestamp())
    }

    /// Whether the signing certificate is near its end.
    pub(super) fn is_ending(&self) -> bool {
        self.not_after < OffsetDateTime::now_utc() + RENEW_INTERMEDIATE
    }

    /// Certifies the key of `request` for `id` alone, for `ttl` from now or until the CA itself
    /// ends. Names within the request do not matter.
    ///
    /// # Errors
    /// [`CaError::Broken`]: the CA has expired or cannot sign.
    pub fn sign(
        &self,
        request: &SigningRequest,
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<SignedCertificate, CaError> {
        let mut params = leaf_params()?;
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(broken)?)];
        let leaf = self.finish(params, &request.key, ttl)?;
        Ok(SignedCertificate { chain: self.chain(leaf), roots: self.roots.clone() })
    }

    /// Makes a key and a server's certificate for DNS names and IP addresses.
    ///
    /// # Errors
    /// [`CaError::Broken`]: the CA has expired or cannot sign, or a name is none.
    pub fn serving(&self, names: &[String], ttl: Duration) -> Result<ServingCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken)?;
        let mut params = leaf_params()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName).map_err(broken),
            })
            .collect::<Result<_, _>>()?;
        if let Some(name) = names.first().filter(|name| name.len() <= 64) {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        let leaf = self.finish(params, &key, ttl)?;
        let (not_before, not_after) = validity(&leaf)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(self.chain(leaf), der, tls::provider())
            .map_err(|e| CaError::Broken(e.to_string()))?;
        Ok(ServingCertificate { key: Arc::new(key), not_before, not_after })
    }

    fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(leaf).chain(self.intermediates.iter().cloned()).collect()
    }

    fn finish(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        ttl: Duration,
    ) -> Result<CertificateDer<'static>, CaError> {
        let now = OffsetDateTime::now_utc();
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + ttl.min(MAX_TTL)).min(self.not_after);
        if params.not_after <= now {
            return Err(CaError::Broken("the CA certificate has expired".into()));
        }
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|e| CaError::Broken(format!("signing failed: {e}")))?;
        Ok(certificate.der().clone())
    }
}

fn err(name: &'static str, message: impl ToString) -> CaSetError {
    CaSetError::new(name, message)
}

fn validity(leaf: &[u8]) -> Result<(SystemTime, SystemTime), CaError> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|e| CaError::Broken(e.to_string()))?;
    let validity = parsed.validity();
    Ok((from_unix(validity.not_before.timestamp()), from_unix(validity.not_after.timestamp())))
}

pub(super) fn broken(e: rcgen::Error) -> CaError {
    CaError::Broken(e.to_string())
}

pub(super) fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes).ok_or_else(|| CaError::Broken("no randomness".into()))?;
    // Positive and of full length (RFC 5280 section 4.1.2.2).
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn leaf_params() -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
