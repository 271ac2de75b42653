//! Certificates and keys on disk, so that a daemon that starts while its CA cannot be reached goes
//! on with those that it had.
//!
//! A file for each identity, readable by its owner alone, replaced as a whole. What is read is
//! taken like the answer of a CA: it has to be for that identity and that key, and to verify to
//! its roots at this moment; otherwise it is removed, and a new one is asked for.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fairlead_types::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::certificate::{Material, WorkloadCertificate};
use crate::svid::fingerprint;

/// Bytes of the largest file: a key, a chain and a bundle of roots.
const MAX_FILE: u64 = 1 << 20;
/// Ends the name of each file.
const SUFFIX: &str = ".pem";
/// What the PEM blocks are called; the roots have a name of their own (that of OpenSSL).
const KEY: &str = "PRIVATE KEY";
const CERTIFICATE: &str = "CERTIFICATE";
const ROOT: &str = "TRUSTED CERTIFICATE";

/// A directory of certificates with their keys.
#[derive(Debug)]
pub struct KeptCertificates {
    dir: PathBuf,
    /// The files of the identities that are held; nobody else's is kept. Until it is told,
    /// everybody's is.
    wanted: Mutex<Option<HashSet<PathBuf>>>,
}

impl KeptCertificates {
    /// Opens the directory, making it where there is none; nobody else may read it.
    ///
    /// # Errors
    /// It cannot be made, or its permissions cannot be set.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self { dir: dir.into(), wanted: Mutex::new(None) })
    }

    fn path(&self, id: &SpiffeId) -> PathBuf {
        // The identity itself may hold what a file name cannot.
        self.dir.join(format!("{}{SUFFIX}", fingerprint(id.to_string().as_bytes())))
    }

    /// Keeps a certificate, instead of one before; not if its identity has gone meanwhile.
    pub(crate) fn keep(&self, id: &SpiffeId, text: &str) -> std::io::Result<()> {
        let path = self.path(id);
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        // One that was left by an interrupted run keeps its mode otherwise.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let wanted = self.wanted.lock();
        if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&path)) {
            // It may have been removed already.
            let _ = fs::remove_file(&temporary);
            return Ok(());
        }
        fs::rename(&temporary, &path)
    }

    /// The certificate of `id`, if one is kept that can be used now. One that cannot is removed.
    pub(crate) fn find(
        &self,
        id: &SpiffeId,
        aliases: &[TrustDomain],
    ) -> Option<WorkloadCertificate> {
        let path = self.path(id);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%id, %error, "the certificate that was kept cannot be read");
                let _ = fs::remove_file(&path);
                return None;
            }
        };
        let usable = parse(&text).and_then(|material| {
            let certificate =
                WorkloadCertificate::assemble(material, id, aliases).map_err(|e| e.to_string())?;
            certificate.verify().map_err(|e| e.to_string())?;
            Ok(certificate)
        });
        match usable {
            Ok(certificate) => Some(certificate),
            Err(reason) => {
                tracing::warn!(%id, reason, "the certificate that was kept is not used");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Removes those of all other identities, and keeps no more of them: a key is held only while it
    /// is needed.
    pub(crate) fn retain(&self, ids: &HashSet<SpiffeId>) {
        let mut wanted = self.wanted.lock();
        let wanted = wanted.insert(ids.iter().map(|id| self.path(id)).collect());
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            // One that is being written at this moment is that of an identity, too.
            if !wanted.contains(&path.with_extension("pem"))
                && path.extension().is_some_and(|e| e == "pem" || e == "new")
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a kept key could not be removed");
            }
        }
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let refused = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(refused("it is no file of a certificate".into()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused("others than its owner may read it".into()));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The text of a file.
pub(crate) fn text(material: &Material) -> String {
    let block = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    let mut body = block(KEY, material.key.secret_pkcs8_der());
    body.extend(material.chain.iter().map(|der| block(CERTIFICATE, der)));
    body.extend(material.roots.iter().map(|der| block(ROOT, der)));
    format!("sha256 {}\n{body}", fingerprint(body.as_bytes()))
}

/// Reads the text of a file.
pub(crate) fn parse(text: &str) -> Result<Material, String> {
    let (digest, body) = text
        .strip_prefix("sha256 ")
        .and_then(|rest| rest.split_once('\n'))
        .ok_or("it does not begin with its checksum")?;
    if digest != &*fingerprint(body.as_bytes()) {
        return Err("its checksum does not fit: it was damaged".into());
    }
    let mut key = None;
    let (mut chain, mut roots) = (Vec::new(), Vec::new());
    for block in pem::parse_many(body).map_err(|e| format!("not PEM: {e}"))? {
        let tag = block.tag().to_owned();
        let der = block.into_contents();
        match tag.as_str() {
            KEY if key.is_none() => key = Some(PrivatePkcs8KeyDer::from(der)),
            CERTIFICATE => chain.push(CertificateDer::from(der)),
            ROOT => roots.push(CertificateDer::from(der)),
            other => return Err(format!("a block {other:?} does not belong there")),
        }
    }
    Ok(Material { key: key.ok_or("there is no key in it")?, chain, roots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("fairlead-kept-{}", std::process::id()));
        let kept = KeptCertificates::open(&dir).unwrap();
        let id = |name: &str| SpiffeId::new("cluster.local".parse().unwrap(), "a", name).unwrap();
        for name in ["wanted", "other"] {
            fs::write(kept.path(&id(name)).with_extension("new"), "half").unwrap();
        }
        kept.keep(&id("gone"), "text").unwrap();
        kept.retain(&HashSet::from([id("wanted")]));
        let left: Vec<_> = fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, [kept.path(&id("wanted")).with_extension("new")]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_identity_that_has_gone_leaves_no_key_behind() {
        let dir = std::env::temp_dir().join(format!("fairlead-gone-{}", std::process::id()));
        let kept = KeptCertificates::open(&dir).unwrap();
        let id = |name: &str| SpiffeId::new("cluster.local".parse().unwrap(), "a", name).unwrap();
        kept.retain(&HashSet::from([id("stays")]));
        // Its renewal was under way.
        kept.keep(&id("gone"), "text").unwrap();
        kept.keep(&id("stays"), "text").unwrap();
        let left: Vec<_> = fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, [kept.path(&id("stays"))]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
