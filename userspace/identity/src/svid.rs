//! What a peer's leaf certificate says: the X.509-SVID rules (SPIFFE "X.509-SVID" section 2 and
//! 4) that a chain verification alone does not cover.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use fairlead_types::{IdentityError, SpiffeId};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The facts of a leaf certificate that the mesh uses. Chain and validity are verified elsewhere
/// (by the TLS verifier); this only reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    /// Who the certificate speaks for.
    pub id: SpiffeId,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
}

/// Why a leaf certificate is no SVID. To blame: whoever issued it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// Not an X.509 certificate, or one with a malformed or duplicate extension.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    /// SPIFFE demands exactly one URI name.
    #[error("the certificate has {0} URI names; a SPIFFE certificate has exactly one")]
    UriNames(usize),
    /// The one URI is not an identity of the mesh.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A leaf must not be a CA.
    #[error("the certificate is a CA certificate, which may not speak for a workload")]
    IsCa,
}

impl PeerSvid {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// [`SvidError`] names the rule that the certificate breaks.
    pub fn from_der(leaf: &[u8]) -> Result<Self, SvidError> {
        let (rest, cert) =
            X509Certificate::from_der(leaf).map_err(|e| SvidError::Malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(SvidError::Malformed("trailing bytes".into()));
        }
        if is_ca(&cert)? {
            return Err(SvidError::IsCa);
        }
        let san = cert
            .subject_alternative_name()
            .map_err(|e| SvidError::Malformed(e.to_string()))?
            .ok_or(SvidError::UriNames(0))?;
        // A URI that x509-parser cannot represent comes back as `Invalid`; it is counted, so that
        // a certificate cannot hide a second name behind an encoding trick.
        let mut uri = None;
        let mut count = 0_usize;
        for name in &san.value.general_names {
            match name {
                GeneralName::URI(text) => {
                    count += 1;
                    uri = Some(*text);
                }
                GeneralName::Invalid(..) => count += 1,
                _ => {}
            }
        }
        let uri = match (count, uri) {
            (1, Some(uri)) => uri,
            (n, _) => return Err(SvidError::UriNames(n)),
        };
        let validity = cert.validity();
        Ok(Self {
            id: uri.parse()?,
            not_before: from_unix(validity.not_before.timestamp()),
            not_after: from_unix(validity.not_after.timestamp()),
            serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
        })
    }
}

/// Whether the certificate may sign others. `X509Certificate::is_ca` would say no of constraints
/// that are there twice or cannot be read.
fn is_ca(cert: &X509Certificate<'_>) -> Result<bool, SvidError> {
    let extension = cert
        .get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS)
        .map_err(|e| SvidError::Malformed(e.to_string()))?;
    match extension.map(|extension| extension.parsed_extension()) {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(SvidError::Malformed("the basic constraints cannot be read".into())),
    }
}

/// SHA-256 of a certificate, lower-case hexadecimal: `Hash` of Envoy's
/// `x-forwarded-client-cert`.
#[must_use]
pub fn fingerprint(der: &[u8]) -> Arc<str> {
    use std::fmt::Write as _;
    let digest = digest(&SHA256, der);
    let mut text = String::with_capacity(2 * digest.as_ref().len());
    for byte in digest.as_ref() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

pub(crate) fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

#[cfg(test)]
#[path = "svid_tests.rs"]
mod tests;
