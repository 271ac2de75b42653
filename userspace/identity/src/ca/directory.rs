//! The CA of a node without Kubernetes: a directory with the file names of Istio's `cacerts`
//! secret (Istio "Plug in CA Certificates"), made on first use, or put there by its owner.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_types::{SpiffeId, TrustDomain};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::set::{CA_CERT, CA_KEY, CERT_CHAIN, CaSet, CaSetError, ROOT_CERT, ROOT_KEY};
use super::{Authority, CaClient, CaError, SignFuture, SignedCertificate, SigningRequest, files};

/// Present while the files are being made: a set that was interrupted is made anew.
const MAKING: &str = ".making";

/// A CA in a directory. Several daemons may use one directory at the same time; when the files
/// are exchanged, the next certificate comes from the new ones.
pub struct CaDirectory {
    dir: PathBuf,
    trust_domain: TrustDomain,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    authority: Authority,
    stamp: Stamp,
}

/// What changes when somebody exchanges the files.
#[derive(PartialEq, Eq)]
struct Stamp([Option<(std::time::SystemTime, u64)>; 4]);

impl Stamp {
    fn of(dir: &Path) -> Self {
        Self([CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN].map(|name| {
            let meta = fs::metadata(dir.join(name)).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        }))
    }
}

impl CaDirectory {
    /// Opens the CA in `dir`, making directory, root and intermediate if there is nothing yet.
    /// Reads and writes files: call it at start, not on a connection's way.
    ///
    /// # Errors
    /// A file is missing from a set that somebody else brought, or is not usable; nothing that
    /// exists is ever overwritten.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        files::make_dir(dir)?;
        let _lock = files::lock(dir)?;
        let present = |name: &str| dir.join(name).exists();
        if present(MAKING) || ![CA_CERT, CA_KEY, ROOT_CERT].into_iter().any(present) {
            make(dir, trust_domain)?;
        }
        renew(dir, trust_domain)?;
        let loaded = ArcSwap::from_pointee(load(dir)?);
        Ok(Self { dir: dir.into(), trust_domain: trust_domain.clone(), loaded })
    }

    /// The roots that certificates of this CA verify to.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.loaded.load().authority.roots().to_vec()
    }

    /// The CA as its files have it now. Files that are being exchanged at this moment do not
    /// disturb: the last usable set stays.
    fn current(&self) -> Arc<Loaded> {
        let loaded = self.loaded.load_full();
        let ending =
            || loaded.authority.is_ending() && read(&self.dir).is_ok_and(|set| set.is_ending());
        if loaded.stamp == Stamp::of(&self.dir) && !ending() {
            return loaded;
        }
        let reload = || {
            let _lock = files::lock(&self.dir)?;
            // Another daemon may have done it while this one waited.
            renew(&self.dir, &self.trust_domain)?;
            load(&self.dir)
        };
        match reload() {
            Ok(new) => {
                tracing::info!(dir = %self.dir.display(), "CA files have changed; using the new ones");
                let new = Arc::new(new);
                self.loaded.store(new.clone());
                new
            }
            Err(error) => {
                tracing::warn!(%error, "CA files have changed and are not usable; keeping the old CA");
                loaded
            }
        }
    }

    fn issue(
        &self,
        csr: &CertificateSigningRequestDer<'_>,
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<SignedCertificate, CaError> {
        self.current().authority.sign(&SigningRequest::from_der(csr)?, id, ttl)
    }
}

impl CaClient for CaDirectory {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        Box::pin(async move { self.issue(csr, id, ttl) })
    }
}

/// Makes root and intermediate. The caller holds the lock.
fn make(dir: &Path, trust_domain: &TrustDomain) -> Result<(), CaError> {
    tracing::info!(dir = %dir.display(), %trust_domain, "making a root and an intermediate CA");
    let set = CaSet::generate(trust_domain)?;
    let marker = dir.join(MAKING);
    files::write(&marker, "")?;
    files::write(&dir.join(ROOT_KEY), &set.root_key)?;
    files::write(&dir.join(ROOT_CERT), &set.root_cert)?;
    write_intermediate(dir, &set)?;
    fs::remove_file(&marker).map_err(|e| files::error(&marker, e))
}

fn write_intermediate(dir: &Path, set: &CaSet) -> Result<(), CaError> {
    // Key first: until the certificate is there too, a reader finds a pair that does not match,
    // and keeps what it has.
    files::write(&dir.join(CA_KEY), &set.ca_key)?;
    files::write(&dir.join(CERT_CHAIN), &set.cert_chain)?;
    files::write(&dir.join(CA_CERT), &set.ca_cert)
}

/// Replaces an intermediate that was made here and is about to end. The caller holds the lock;
/// other daemons see the new files with their next certificate, and the root stays.
fn renew(dir: &Path, trust_domain: &TrustDomain) -> Result<(), CaError> {
    // What cannot be read is told by whoever loads it.
    let Ok(set) = read(dir) else { return Ok(()) };
    if !set.is_ending() {
        return Ok(());
    }
    tracing::info!(dir = %dir.display(), "the intermediate CA is about to end; making a new one");
    write_intermediate(dir, &set.renewed(trust_domain)?)
}

fn read(dir: &Path) -> Result<CaSet, CaError> {
    let needed = |name: &str| files::read(&dir.join(name));
    let optional =
        |name: &str| if dir.join(name).exists() { needed(name) } else { Ok(String::new()) };
    Ok(CaSet {
        ca_cert: needed(CA_CERT)?,
        ca_key: needed(CA_KEY)?,
        root_cert: needed(ROOT_CERT)?,
        cert_chain: optional(CERT_CHAIN)?,
        root_key: optional(ROOT_KEY)?,
    })
}

fn load(dir: &Path) -> Result<Loaded, CaError> {
    let stamp = Stamp::of(dir);
    let key_path = dir.join(CA_KEY);
    if files::readable_by_others(&key_path) {
        tracing::warn!(path = %key_path.display(), "the CA key is readable by others than its owner");
    }
    let authority = Authority::new(&read(dir)?)
        .map_err(|CaSetError { name, message }| files::error(&dir.join(name), message))?;
    Ok(Loaded { authority, stamp })
}
