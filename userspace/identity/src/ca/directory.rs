//! The CA of a node without Kubernetes: a directory with the file names of Istio's `cacerts`
//! secret (Istio "Plug in CA Certificates"), made on first use, or put there by its owner.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_types::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CaClient, CaError, SignFuture, SignedCertificate, files};
use crate::random;
use crate::svid::from_unix;

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const ROOT_CERT: &str = "root-cert.pem";
const CERT_CHAIN: &str = "cert-chain.pem";
/// The key of a root made here; absent when somebody brings roots of their own.
const ROOT_KEY: &str = "root-key.pem";
/// Present while the files are being made: a set that was interrupted is made anew.
const MAKING: &str = ".making";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(2 * 365 * 86_400);
/// An intermediate that was made here is made anew when it has less than this left.
const RENEW_INTERMEDIATE: Duration = Duration::from_secs(180 * 86_400);
/// Certificates begin this much in the past, so that a peer whose clock runs behind takes them.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// No workload certificate lives longer, whatever the settings say (Istio's
/// `MAX_WORKLOAD_CERT_TTL` is 90 days).
const MAX_TTL: Duration = Duration::from_secs(90 * 86_400);

/// A CA in a directory. Several daemons may use one directory at the same time; when the files
/// are exchanged, the next certificate comes from the new ones.
pub struct CaDirectory {
    dir: PathBuf,
    trust_domain: TrustDomain,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    issuer: Issuer<'static, KeyPair>,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
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
        if is_ending(dir) {
            renew_intermediate(dir, trust_domain)?;
        }
        let loaded = ArcSwap::from_pointee(load(dir)?);
        Ok(Self { dir: dir.into(), trust_domain: trust_domain.clone(), loaded })
    }

    /// The roots that certificates of this CA verify to.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.loaded.load().roots.clone()
    }

    /// The CA as its files have it now. Files that are being exchanged at this moment do not
    /// disturb: the last usable set stays.
    fn current(&self) -> Arc<Loaded> {
        let loaded = self.loaded.load_full();
        let ending = loaded.not_after < OffsetDateTime::now_utc() + RENEW_INTERMEDIATE;
        if loaded.stamp == Stamp::of(&self.dir) && !(ending && is_ending(&self.dir)) {
            return loaded;
        }
        let reload = || {
            let _lock = files::lock(&self.dir)?;
            // Another daemon may have done it while this one waited.
            if is_ending(&self.dir) {
                renew_intermediate(&self.dir, &self.trust_domain)?;
            }
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
        // Parsing verifies the request's signature: proof that the requester holds the key.
        let mut request = CertificateSigningRequestParams::from_der(csr)
            .map_err(|e| CaError::Refused(format!("signing request: {e}")))?;
        let ca = self.current();
        let now = OffsetDateTime::now_utc();
        let mut params = leaf_params(id)?;
        params.not_before = now - CLOCK_SKEW;
        params.not_after = (now + ttl.min(MAX_TTL)).min(ca.not_after);
        if params.not_after <= now {
            return Err(CaError::Broken("the CA certificate has expired".into()));
        }
        request.params = params;
        let certificate = request
            .signed_by(&ca.issuer)
            .map_err(|e| CaError::Broken(format!("signing failed: {e}")))?;
        let chain =
            std::iter::once(certificate.der().clone()).chain(ca.intermediates.clone()).collect();
        Ok(SignedCertificate { chain, roots: ca.roots.clone() })
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

fn broken(e: rcgen::Error) -> CaError {
    CaError::Broken(e.to_string())
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes).ok_or_else(|| CaError::Broken("no randomness".into()))?;
    // Positive and of full length (RFC 5280 section 4.1.2.2).
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn leaf_params(id: &SpiffeId) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial()?);
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(broken)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
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

/// Makes root and intermediate. The caller holds the lock.
fn make(dir: &Path, trust_domain: &TrustDomain) -> Result<(), CaError> {
    tracing::info!(dir = %dir.display(), %trust_domain, "making a root and an intermediate CA");
    let generate = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken);
    let root_key = generate()?;
    let root_params = ca_params(
        "Fairlead root CA",
        trust_domain,
        ROOT_LIFETIME,
        BasicConstraints::Unconstrained,
    )?;
    let root = root_params.self_signed(&root_key).map_err(broken)?;
    let root_key_pem = root_key.serialize_pem();
    let root_issuer = Issuer::new(root_params, root_key);

    let marker = dir.join(MAKING);
    files::write(&marker, "")?;
    files::write(&dir.join(ROOT_KEY), &root_key_pem)?;
    files::write(&dir.join(ROOT_CERT), &root.pem())?;
    make_intermediate(dir, trust_domain, &root_issuer, &root.pem())?;
    fs::remove_file(&marker).map_err(|e| files::error(&marker, e))
}

fn make_intermediate(
    dir: &Path,
    trust_domain: &TrustDomain,
    root: &Issuer<'_, KeyPair>,
    root_pem: &str,
) -> Result<(), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken)?;
    let cert = ca_params(
        "Fairlead intermediate CA",
        trust_domain,
        INTERMEDIATE_LIFETIME,
        BasicConstraints::Constrained(0),
    )?
    .signed_by(&key, root)
    .map_err(broken)?;
    // Key first: until the certificate is there too, a reader finds a pair that does not match,
    // and keeps what it has.
    files::write(&dir.join(CA_KEY), &key.serialize_pem())?;
    files::write(&dir.join(CERT_CHAIN), &format!("{}{root_pem}", cert.pem()))?;
    files::write(&dir.join(CA_CERT), &cert.pem())
}

/// Whether the intermediate was made here (the root's key is here too) and is about to end.
fn is_ending(dir: &Path) -> bool {
    let not_after = || {
        let cert = certificates(&dir.join(CA_CERT)).ok()?.swap_remove(0);
        let (_, parsed) = X509Certificate::from_der(&cert).ok()?;
        Some(parsed.validity().not_after.to_datetime())
    };
    dir.join(ROOT_KEY).exists()
        && not_after().is_some_and(|end| end < OffsetDateTime::now_utc() + RENEW_INTERMEDIATE)
}

/// Replaces an intermediate that is about to end. The caller holds the lock; other daemons see
/// the new files with their next certificate, and the root stays.
fn renew_intermediate(dir: &Path, trust_domain: &TrustDomain) -> Result<(), CaError> {
    tracing::info!(dir = %dir.display(), "the intermediate CA is about to end; making a new one");
    let (root_path, key_path) = (dir.join(ROOT_CERT), dir.join(ROOT_KEY));
    let key = KeyPair::from_pem(&files::read(&key_path)?)
        .map_err(|e| files::error(&key_path, format!("not a private key: {e}")))?;
    let root_pem = files::read(&root_path)?;
    let root = Issuer::from_ca_cert_der(&certificates(&root_path)?.swap_remove(0), key)
        .map_err(|e| files::error(&root_path, e))?;
    make_intermediate(dir, trust_domain, &root, &root_pem)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let text = files::read(path)?;
    pem_certificates(text.as_bytes()).map_err(|message| files::error(path, message))
}

/// The certificates of a PEM text, of which there has to be one at least.
pub(crate) fn pem_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("not PEM: {e}"))?;
    if list.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    Ok(list)
}

fn load(dir: &Path) -> Result<Loaded, CaError> {
    let stamp = Stamp::of(dir);
    let (cert_path, key_path, root_path) =
        (dir.join(CA_CERT), dir.join(CA_KEY), dir.join(ROOT_CERT));
    if files::readable_by_others(&key_path) {
        tracing::warn!(path = %key_path.display(), "the CA key is readable by others than its owner");
    }
    let ca_cert = certificates(&cert_path)?.swap_remove(0);
    let roots = certificates(&root_path)?;
    let key = KeyPair::from_pem(&files::read(&key_path)?)
        .map_err(|e| files::error(&key_path, format!("not a private key: {e}")))?;

    let parsed = X509Certificate::from_der(&ca_cert)
        .map_err(|e| files::error(&cert_path, format!("not a certificate: {e}")))?
        .1;
    if !parsed.is_ca() {
        return Err(files::error(&cert_path, "not a CA certificate (basicConstraints CA:TRUE)"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(files::error(&key_path, format!("not the key of {CA_CERT}")));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if from_unix(not_after.unix_timestamp()) <= std::time::SystemTime::now() {
        return Err(files::error(&cert_path, "the CA certificate has expired"));
    }

    // Istio's cert-chain.pem begins with ca-cert.pem and may end with the root; peers have the
    // roots, so they are not sent.
    let chain_path = dir.join(CERT_CHAIN);
    let rest = if chain_path.exists() { certificates(&chain_path)? } else { Vec::new() };
    let mut intermediates: Vec<CertificateDer<'static>> = Vec::new();
    for cert in std::iter::once(ca_cert.clone()).chain(rest) {
        if !roots.contains(&cert) && !intermediates.contains(&cert) {
            intermediates.push(cert);
        }
    }
    let issuer =
        Issuer::from_ca_cert_der(&ca_cert, key).map_err(|e| files::error(&cert_path, e))?;
    Ok(Loaded { issuer, intermediates, roots, not_after, stamp })
}
