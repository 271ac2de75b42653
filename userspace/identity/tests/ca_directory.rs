//! The CA directory: made once however many daemons start, private, never overwritten, and
//! open to roots of one's own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fairlead_identity::{CaDirectory, CaError, WorkloadCertificate};
use fairlead_types::{SpiffeId, TrustDomain};

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairlead-ca-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::new(domain(), "default", "reviews").unwrap()
}

fn open(dir: &Path) -> Result<CaDirectory, CaError> {
    CaDirectory::open(dir, &domain())
}

fn message(result: Result<CaDirectory, CaError>) -> String {
    result.err().unwrap().to_string()
}

async fn issue(ca: &CaDirectory, ttl: Duration) -> WorkloadCertificate {
    WorkloadCertificate::issue(ca, &id(), ttl, &[]).await.unwrap()
}

#[test]
fn files_are_private_and_an_existing_ca_is_kept() {
    let dir = TempDir::new();
    let first = open(&dir.0.join("deep/ca")).unwrap().roots();
    for entry in fs::read_dir(dir.0.join("deep/ca")).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
    let mode = fs::metadata(dir.0.join("deep/ca")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    assert_eq!(open(&dir.0.join("deep/ca")).unwrap().roots(), first);
}

#[test]
fn daemons_that_start_together_get_one_ca() {
    let dir = TempDir::new();
    let barrier = std::sync::Barrier::new(8);
    let roots: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            barrier.wait();
            open(&dir.0).unwrap().roots()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(roots.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn an_interrupted_making_is_repeated_but_a_foreign_partial_set_is_not_touched() {
    let dir = TempDir::new();
    open(&dir.0).unwrap();
    // As if the power had gone in the middle.
    fs::remove_file(dir.0.join("ca-cert.pem")).unwrap();
    fs::write(dir.0.join(".making"), "").unwrap();
    open(&dir.0).unwrap();
    assert!(!dir.0.join(".making").exists());

    let foreign = TempDir::new();
    fs::copy(dir.0.join("root-cert.pem"), foreign.0.join("root-cert.pem")).unwrap();
    let said = message(open(&foreign.0));
    assert!(said.contains("ca-cert.pem") || said.contains("ca-key.pem"), "{said}");
    assert!(!foreign.0.join("ca-cert.pem").exists());
}

#[test]
fn unusable_sets_are_named() {
    let (a, b) = (TempDir::new(), TempDir::new());
    open(&a.0).unwrap();
    open(&b.0).unwrap();
    // The key of another CA.
    fs::copy(b.0.join("ca-key.pem"), a.0.join("ca-key.pem")).unwrap();
    assert!(message(open(&a.0)).contains("not the key of ca-cert.pem"));
    fs::write(a.0.join("ca-key.pem"), "nonsense").unwrap();
    assert!(message(open(&a.0)).contains("not a private key"));
    // A leaf in the CA's place.
    fs::write(b.0.join("ca-cert.pem"), "").unwrap();
    assert!(message(open(&b.0)).contains("no certificate in it"));
}

#[tokio::test]
async fn certificates_are_as_asked_for() {
    let dir = TempDir::new();
    let ca = open(&dir.0).unwrap();
    let hour = Duration::from_secs(3600);
    let (one, two) = (issue(&ca, hour).await, issue(&ca, hour).await);
    assert_eq!(one.id(), &id());
    assert_ne!(one.serial(), two.serial());
    let left = one.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left <= hour && left > hour - Duration::from_secs(10), "{left:?}");
    // A peer whose clock runs behind takes it all the same.
    assert!(one.not_before() < SystemTime::now() - Duration::from_secs(30));
    let info = one.info();
    assert_eq!(info.chain_pem.matches("BEGIN CERTIFICATE").count(), 2, "leaf and intermediate");
    assert!(!info.chain_pem.contains("PRIVATE"));
    assert!(!format!("{one:?}{info:?}").to_lowercase().contains("private"));
}

/// A CA of our own whose intermediate is about to end: the root stays, certificates go on.
#[tokio::test]
async fn an_ending_intermediate_is_made_anew_under_the_same_root() {
    let dir = TempDir::new();
    let ca = open(&dir.0).unwrap();
    let roots = ca.roots();
    // An intermediate with a day left, from the root's own key.
    let read = |file: &str| fs::read_to_string(dir.0.join(file)).unwrap();
    let root_key = rcgen::KeyPair::from_pem(&read("root-key.pem")).unwrap();
    let root = rcgen::Issuer::from_ca_cert_pem(&read("root-cert.pem"), root_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
    let old = params.signed_by(&key, &root).unwrap();
    fs::write(dir.0.join("ca-key.pem"), key.serialize_pem()).unwrap();
    fs::write(dir.0.join("cert-chain.pem"), old.pem()).unwrap();
    fs::write(dir.0.join("ca-cert.pem"), old.pem()).unwrap();
    // The running daemon and one that starts now.
    let long = Duration::from_secs(30 * 86_400);
    for ca in [&ca, &open(&dir.0).unwrap()] {
        let certificate = issue(ca, long).await;
        let left = certificate.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(29 * 86_400), "{left:?}");
        assert_eq!(ca.roots(), roots);
    }
    assert_ne!(read("ca-cert.pem"), old.pem());
    // One that somebody else brought is left alone, however little it has left.
    fs::remove_file(dir.0.join("root-key.pem")).unwrap();
    fs::write(dir.0.join("ca-key.pem"), key.serialize_pem()).unwrap();
    fs::write(dir.0.join("cert-chain.pem"), old.pem()).unwrap();
    fs::write(dir.0.join("ca-cert.pem"), old.pem()).unwrap();
    let certificate = issue(&open(&dir.0).unwrap(), long).await;
    let left = certificate.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(86_400), "{left:?}");
    assert_eq!(read("ca-cert.pem"), old.pem());
}

/// Istio's "Plug in CA Certificates": own root, intermediate and chain, brought by somebody else.
#[tokio::test]
async fn own_roots_can_be_put_there_while_running() {
    let (mine, theirs) = (TempDir::new(), TempDir::new());
    let ca = open(&mine.0).unwrap();
    let before = issue(&ca, Duration::from_secs(60)).await;
    open(&theirs.0).unwrap();
    for file in ["ca-key.pem", "root-cert.pem", "cert-chain.pem", "ca-cert.pem"] {
        fs::copy(theirs.0.join(file), mine.0.join(file)).unwrap();
    }
    let after = issue(&ca, Duration::from_secs(60)).await;
    let root = |dir: &TempDir| fs::read_to_string(dir.0.join("ca-cert.pem")).unwrap();
    assert!(after.info().chain_pem.contains(root(&theirs).trim().lines().nth(1).unwrap()));
    assert_ne!(before.info().chain_pem.len(), 0);
    assert_eq!(ca.roots(), open(&theirs.0).unwrap().roots());
    // Nonsense does not disturb: the last usable CA stays.
    fs::write(mine.0.join("ca-cert.pem"), "nonsense").unwrap();
    issue(&ca, Duration::from_secs(60)).await;
}
