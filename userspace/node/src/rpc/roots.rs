//! The certificates by which nodes recognize the control plane.

use std::path::Path;

use fairlead_wire::client::{self, ClientError};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Longest file of certificates.
const MAX_ROOTS: u64 = 1 << 20;

/// The roots of a PEM file.
pub(super) fn read(path: &Path) -> Result<RootCertStore, ClientError> {
    let wrong = |why: String| ClientError::Credentials(format!("{}: {why}", path.display()));
    let text = client::read(path, MAX_ROOTS)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| wrong(format!("not PEM: {e}")))?;
        roots.add(certificate).map_err(|e| wrong(format!("not a root certificate: {e}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in it".into()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_prove_nothing_are_named() {
        let path = std::env::temp_dir().join(format!("fairlead-roots-{}", std::process::id()));
        let missing = read(Path::new("/nowhere/roots")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/roots"), "{missing}");
        let garbage = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for bad in ["", "no PEM", garbage] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path).is_err(), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
