//! The files by which node and control plane recognize each other.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use http::HeaderValue;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::RpcError;

/// Longest file of certificates.
const MAX_ROOTS: u64 = 1 << 20;
/// Longest token.
const MAX_TOKEN: u64 = 64 << 10;

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, RpcError> {
    let wrong = |why: String| RpcError::Credentials(format!("{}: {why}", path.display()));
    let mut content = Vec::new();
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(limit + 1).read_to_end(&mut content).map_err(|e| wrong(e.to_string()))?;
    if content.len() as u64 > limit {
        return Err(wrong(format!("longer than {limit} bytes")));
    }
    Ok(content)
}

/// The roots of a PEM file.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, RpcError> {
    let wrong = |why: String| RpcError::Credentials(format!("{}: {why}", path.display()));
    let text = read(path, MAX_ROOTS)?;
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

/// `authorization` with the token of a file.
pub(super) fn bearer(path: &Path) -> Result<HeaderValue, RpcError> {
    let wrong = |why: &str| RpcError::Credentials(format!("{}: {why}", path.display()));
    let text = read(path, MAX_TOKEN)?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err(wrong("there is no token in it"));
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_| wrong("what is in it is no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_prove_nothing_are_named() {
        let path = std::env::temp_dir().join(format!("fairlead-proof-{}", std::process::id()));
        let write = |text: &[u8]| std::fs::write(&path, text).unwrap();
        let missing = bearer(Path::new("/nowhere/token")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/token"), "{missing}");
        for bad in [&b""[..], b" \n", b"a\nb", &[b'a'; 70_000]] {
            write(bad);
            assert!(bearer(&path).is_err(), "{:?}", &bad[..bad.len().min(9)]);
        }
        write(b"abc.def\n");
        let value = bearer(&path).unwrap();
        assert!(value == "Bearer abc.def" && value.is_sensitive());
        let garbage = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for bad in ["", "no PEM", garbage] {
            write(bad.as_bytes());
            assert!(roots(&path).is_err(), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
