//! What the fuzz targets reach of the private parsers of this crate. No part of the API.

use rustls::pki_types::CertificateDer;

/// The certificates of a PEM file of the CA directory.
///
/// # Errors
/// Why it is none.
pub fn pem_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    crate::ca::pem_certificates(text)
}
