//! Signing requests: what a CA believes of one. Nothing but the public key, and that whoever sent
//! it holds the private one.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::pem::{PemObject, SectionKind};
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};
use x509_parser::public_key::PublicKey;

use super::CaError;

/// Bytes of the largest request, as PEM or DER: an RSA-4096 request with its names is 2 KiB.
pub const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Bits of the smallest RSA key.
const MIN_RSA_BITS: usize = 2048;
/// Bits of the largest: larger ones only cost their verifiers time.
const MAX_RSA_BITS: usize = 8192;
/// Most names that are looked at in a request; it is refused if it has more.
const MAX_NAMES: usize = 16;

/// A request whose signature is verified: its sender holds the key.
pub struct SigningRequest {
    pub(super) key: SubjectPublicKeyInfo,
    uris: Vec<String>,
    other_names: bool,
}

fn refused(message: impl std::fmt::Display) -> CaError {
    CaError::Refused(format!("signing request: {message}"))
}

impl SigningRequest {
    /// Reads PEM: exactly one `CERTIFICATE REQUEST` and nothing else but white space.
    ///
    /// # Errors
    /// [`CaError::Refused`] names the rule that the request breaks.
    pub fn from_pem(text: &str) -> Result<Self, CaError> {
        if text.len() > MAX_REQUEST_BYTES {
            return Err(refused(too_large(text.len())));
        }
        let trimmed = text.trim();
        let framed = trimmed.starts_with("-----BEGIN ") && trimmed.ends_with("-----");
        if !framed || trimmed.matches("-----BEGIN ").count() != 1 {
            return Err(refused("not a single PEM block"));
        }
        match <(SectionKind, Vec<u8>)>::from_pem_slice(trimmed.as_bytes()) {
            Ok((SectionKind::Csr, der)) => Self::from_der(&der),
            Ok(_) => Err(refused("the PEM block is no CERTIFICATE REQUEST")),
            Err(e) => Err(refused(format_args!("not PEM: {e}"))),
        }
    }

    /// Reads DER.
    ///
    /// # Errors
    /// [`CaError::Refused`] names the rule that the request breaks.
    pub fn from_der(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > MAX_REQUEST_BYTES {
            return Err(refused(too_large(der.len())));
        }
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|e| refused(format_args!("cannot be read: {e}")))?;
        if !rest.is_empty() {
            return Err(refused("bytes after its end"));
        }
        let algorithm = &request.signature_algorithm.algorithm;
        if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
            return Err(refused("signed with SHA-1"));
        }
        let info = &request.certification_request_info;
        // Before the signature: verifying one of an oversized key takes long.
        check_key(&info.subject_pki)?;
        request
            .verify_signature()
            .map_err(|_| refused("its signature is not that of the key in it"))?;
        // The curve or kind of the key itself, not what the signature's algorithm suggests.
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|e| refused(format_args!("public key: {e}")))?;
        let (uris, other_names) = names(&request)?;
        Ok(Self { key, uris, other_names })
    }

    /// Whether the names that the request asks for are none at all, or `id` alone.
    #[must_use]
    pub fn is_for(&self, id: &str) -> bool {
        !self.other_names && self.uris.iter().all(|uri| uri == id)
    }

    /// The URI names that it asks for. They are claims; only the caller's proof of identity counts.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.uris
    }
}

fn too_large(bytes: usize) -> String {
    format!("{bytes} bytes; at most {MAX_REQUEST_BYTES}")
}

fn check_key(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), CaError> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let bits = rsa.key_size();
            if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                Ok(())
            } else {
                Err(refused(format_args!(
                    "RSA key of {bits} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken"
                )))
            }
        }
        // Which curve, the verification of the signature says: P-256 and P-384 alone.
        Ok(PublicKey::EC(_)) => Ok(()),
        Ok(PublicKey::Unknown(_)) if is_ed25519(key) => Ok(()),
        Ok(_) => Err(refused("key of a kind that is not taken; use ECDSA P-256")),
        Err(e) => Err(refused(format_args!("public key: {e}"))),
    }
}

fn is_ed25519(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> bool {
    key.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519
}

/// The URI names asked for, and whether there are names of other kinds.
fn names(request: &X509CertificationRequest<'_>) -> Result<(Vec<String>, bool), CaError> {
    let mut uris = Vec::new();
    let mut others = false;
    let mut count = 0;
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(san) = extension else { continue };
        for name in &san.general_names {
            count += 1;
            if count > MAX_NAMES {
                return Err(refused(format_args!("more than {MAX_NAMES} names")));
            }
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => others = true,
            }
        }
    }
    Ok((uris, others))
}
