//! The texts that make a CA, under the names of Istio's `cacerts` secret (Istio "Plug in CA
//! Certificates"): where they are kept (a directory, a Secret) is the caller's.

use std::fmt;
use std::time::Duration;

use fairlead_types::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::CaError;
use super::authority::{CLOCK_SKEW, broken, serial};

/// The certificate that signs.
pub const CA_CERT: &str = "ca-cert.pem";
/// Its key.
pub const CA_KEY: &str = "ca-key.pem";
/// The roots that are trusted; several while they are being exchanged.
pub const ROOT_CERT: &str = "root-cert.pem";
/// From the signing certificate towards the root.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// The key of a root made here; absent when somebody brings roots of their own.
pub const ROOT_KEY: &str = "root-key.pem";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(2 * 365 * 86_400);
/// An intermediate that was made here is made anew when it has less than this left.
pub(super) const RENEW_INTERMEDIATE: Duration = Duration::from_secs(180 * 86_400);

/// The texts, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CaSet {
    /// [`CA_CERT`].
    pub ca_cert: String,
    /// [`CA_KEY`].
    pub ca_key: String,
    /// [`ROOT_CERT`].
    pub root_cert: String,
    /// [`CERT_CHAIN`]; may be empty where [`CA_CERT`] is signed by the root.
    pub cert_chain: String,
    /// [`ROOT_KEY`]; empty where the root is somebody else's.
    pub root_key: String,
}

impl fmt::Debug for CaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaSet").field("root_cert", &self.root_cert).finish_non_exhaustive()
    }
}

/// What is wrong with a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct CaSetError {
    /// Which text.
    pub name: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl CaSetError {
    pub(super) fn new(name: &'static str, message: impl ToString) -> Self {
        Self { name, message: message.to_string() }
    }
}

impl CaSet {
    /// Makes a root and an intermediate that signs.
    ///
    /// # Errors
    /// [`CaError::Broken`]: no randomness.
    pub fn generate(trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken)?;
        let params = ca_params(
            "Fairlead root CA",
            trust_domain,
            ROOT_LIFETIME,
            BasicConstraints::Unconstrained,
        )?;
        let root_cert = params.self_signed(&key).map_err(broken)?.pem();
        let root_key = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        intermediate(trust_domain, &issuer, root_cert, root_key)
    }

    /// Whether the intermediate was made here and is about to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let not_after = || {
            let cert = pem_certificates(self.ca_cert.as_bytes()).ok()?.swap_remove(0);
            let (_, parsed) = X509Certificate::from_der(&cert).ok()?;
            Some(parsed.validity().not_after.to_datetime())
        };
        !self.root_key.is_empty()
            && not_after().is_some_and(|end| end < OffsetDateTime::now_utc() + RENEW_INTERMEDIATE)
    }

    /// The same root with a new intermediate. Only for sets with the root's key.
    ///
    /// # Errors
    /// The root or its key is not usable.
    pub fn renewed(&self, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let of = |name, e: &dyn fmt::Display| CaError::Broken(format!("{name}: {e}"));
        let key = KeyPair::from_pem(&self.root_key).map_err(|e| of(ROOT_KEY, &e))?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        // Several roots may be trusted; the key is of one of them.
        let root = pem_certificates(self.root_cert.as_bytes())
            .map_err(|e| of(ROOT_CERT, &e))?
            .into_iter()
            .find(|root| {
                X509Certificate::from_der(root).is_ok_and(|(_, c)| c.public_key().raw == spki)
            })
            .ok_or_else(|| of(ROOT_KEY, &"is the key of none of the roots"))?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|e| of(ROOT_CERT, &e))?;
        intermediate(trust_domain, &issuer, self.root_cert.clone(), self.root_key.clone())
    }
}

fn intermediate(
    trust_domain: &TrustDomain,
    root: &Issuer<'_, KeyPair>,
    root_cert: String,
    root_key: String,
) -> Result<CaSet, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken)?;
    let ca_cert = ca_params(
        "Fairlead intermediate CA",
        trust_domain,
        INTERMEDIATE_LIFETIME,
        BasicConstraints::Constrained(0),
    )?
    .signed_by(&key, root)
    .map_err(broken)?
    .pem();
    let cert_chain = format!("{ca_cert}{root_cert}");
    Ok(CaSet { ca_cert, ca_key: key.serialize_pem(), root_cert, cert_chain, root_key })
}

fn ca_params(
    name: &str,
    trust_domain: &TrustDomain,
    life: Duration,
    depth: BasicConstraints,
) -> Result<CertificateParams, CaError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial()?);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    params.is_ca = IsCa::Ca(depth);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The certificates of a PEM text, of which there has to be one at least.
///
/// # Errors
/// Why it is none, in words.
pub fn pem_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("not PEM: {e}"))?;
    if list.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    Ok(list)
}

/// The PEM text of a certificate.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

/// When a certificate ends.
#[must_use]
pub fn certificate_end(der: &[u8]) -> Option<std::time::SystemTime> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(crate::svid::from_unix(parsed.validity().not_after.timestamp()))
}
