//! Certificates that are kept on disk, and roots that change under way.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fairlead_identity::{
    CaClient, CaDirectory, CaError, CertificateError, IdentityStore, KeptCertificates, SignFuture,
    StoreSettings, Wire, split_root,
};
use fairlead_types::SpiffeId;
use rustls::pki_types::CertificateSigningRequestDer;

struct TestCa {
    inner: CaDirectory,
    away: AtomicBool,
    asked: AtomicUsize,
}

impl CaClient for TestCa {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Box::pin(async { Err(CaError::Unreachable("away".into())) });
        }
        self.inner.sign(csr, id, ttl)
    }
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("fairlead-kept-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn ca(&self, name: &str) -> Arc<TestCa> {
        let domain = "cluster.local".parse().unwrap();
        let inner = CaDirectory::open(&self.0.join(name), &domain).unwrap();
        Arc::new(TestCa { inner, away: false.into(), asked: 0.into() })
    }

    fn kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    fn store(&self, ca: &Arc<TestCa>, ttl: u64) -> Arc<IdentityStore> {
        let settings = StoreSettings { ttl: Duration::from_secs(ttl), ..StoreSettings::default() };
        let kept = KeptCertificates::open(&self.kept()).unwrap();
        IdentityStore::with_kept(ca.clone(), settings, kept)
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.kept()).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local".parse().unwrap(), "default", account).unwrap()
}

fn ids(accounts: &[&str]) -> HashSet<SpiffeId> {
    accounts.iter().map(|a| id(a)).collect()
}

const PATIENCE: Duration = Duration::from_secs(5);

async fn serial(store: &IdentityStore, account: &str) -> Result<String, CertificateError> {
    store.certificate_within(&id(account), PATIENCE).await.map(|c| c.serial().to_owned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_daemon_that_starts_without_its_ca_goes_on_with_what_it_had() {
    let dir = Dir::new("goes-on");
    let ca = dir.ca("ca");
    let store = dir.store(&ca, 600);
    store.retain(&ids(&["a", "b"]));
    let before = [serial(&store, "a").await.unwrap(), serial(&store, "b").await.unwrap()];
    drop(store);
    assert_eq!(mode(&dir.kept()), 0o700);
    assert!(dir.files().iter().all(|f| mode(f) == 0o600) && dir.files().len() == 2);

    ca.away.store(true, Ordering::Relaxed);
    let asked = ca.asked.load(Ordering::Relaxed);
    let store = dir.store(&ca, 600);
    store.retain(&ids(&["a", "b"]));
    let after = [serial(&store, "a").await.unwrap(), serial(&store, "b").await.unwrap()];
    assert_eq!(before, after);
    assert_eq!(ca.asked.load(Ordering::Relaxed), asked, "asked for what was there");
    // A key is kept only while it is needed.
    store.retain(&ids(&["b"]));
    assert_eq!(dir.files().len(), 1);
    store.retain(&ids(&["a", "b"]));
    assert!(store.certificate_within(&id("a"), Duration::from_millis(100)).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_trusted_is_not_used() {
    let dir = Dir::new("distrust");
    let ca = dir.ca("ca");
    type Harm = fn(&Path, &Path);
    let harms: [(&str, Harm); 5] = [
        ("damaged", |own, _| {
            let mut bytes = fs::read(own).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
            fs::write(own, bytes).unwrap();
        }),
        ("cut", |own, _| {
            let bytes = fs::read(own).unwrap();
            fs::write(own, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("readable", |own, _| {
            fs::set_permissions(own, fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("of another", |own, other| {
            fs::copy(other, own).unwrap();
        }),
        ("empty", |own, _| fs::write(own, "").unwrap()),
    ];
    for (what, harm) in harms {
        let store = dir.store(&ca, 600);
        store.retain(&ids(&["a"]));
        serial(&store, "a").await.unwrap();
        let own = dir.files().remove(0);
        store.retain(&ids(&["a", "b"]));
        serial(&store, "b").await.unwrap();
        let other = dir.files().into_iter().find(|f| *f != own).unwrap();
        drop(store);
        harm(&own, &other);
        ca.away.store(true, Ordering::Relaxed);
        let store = dir.store(&ca, 600);
        store.retain(&ids(&["a", "b"]));
        serial(&store, "b").await.unwrap();
        let found = store.certificate_within(&id("a"), Duration::from_millis(100)).await;
        assert!(found.is_err(), "{what}");
        assert!(!own.exists(), "{what} is still there");
        ca.away.store(false, Ordering::Relaxed);
        store.retain(&HashSet::new());
    }
}

#[tokio::test]
async fn an_expired_certificate_is_not_taken_up_again() {
    let dir = Dir::new("expired");
    let ca = dir.ca("ca");
    let store = dir.store(&ca, 1);
    store.retain(&ids(&["a"]));
    serial(&store, "a").await.unwrap();
    drop(store);
    ca.away.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let store = dir.store(&ca, 1);
    store.retain(&ids(&["a"]));
    assert!(store.certificate_within(&id("a"), Duration::from_millis(100)).await.is_err());
}

#[tokio::test]
async fn roots_and_aliases_change_for_certificates_that_are_held() {
    let dir = Dir::new("roots");
    let (old, new) = (dir.ca("old"), dir.ca("new"));
    let store = dir.store(&old, 600);
    store.retain(&ids(&["a"]));
    let before = store.certificate_within(&id("a"), PATIENCE).await.unwrap();
    let both = [old.inner.roots(), new.inner.roots()].concat();
    store.trust_roots(both).unwrap();
    store.trust_aliases(&["other.local".parse().unwrap()]);
    let after = store.certificate(&id("a")).unwrap();
    assert_eq!(before.serial(), after.serial(), "a certificate was asked for");
    assert!(after.trust().accepts(&"other.local".parse().unwrap()));
    assert!(!before.trust().accepts(&"other.local".parse().unwrap()), "sessions that are open");
    let config = |c: &fairlead_identity::WorkloadCertificate| c.server_config(Wire::Native);
    assert!(!Arc::ptr_eq(&config(&before), &config(&after)));
    // Nothing changes by what is no bundle.
    assert!(store.trust_roots(Vec::new()).is_err());
    assert!(Arc::ptr_eq(&config(&store.certificate(&id("a")).unwrap()), &config(&after)));
    // Roots that do not vouch for what the CA delivers: no certificate rather than a useless one.
    store.trust_roots(new.inner.roots()).unwrap();
    store.retain(&ids(&["a", "b"]));
    let error = serial(&store, "b").await.unwrap_err().to_string();
    assert!(error.contains("root"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn other_roots_have_certificates_renewed_within_a_minute() {
    let dir = Dir::new("other-roots");
    let (ca, new) = (dir.ca("ca"), dir.ca("new"));
    let store = dir.store(&ca, 24 * 3600);
    store.retain(&ids(&["a", "b"]));
    let before = [serial(&store, "a").await.unwrap(), serial(&store, "b").await.unwrap()];
    let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let asked = || ca.asked.load(Ordering::Relaxed);
    // The first that is heard of the mesh's roots is nothing new.
    store.trust_roots(ca.inner.roots()).unwrap();
    pass(70).await;
    assert_eq!(asked(), 2);
    // The other CA does not sign before its root is known everywhere.
    let mut both = [ca.inner.roots(), new.inner.roots()].concat();
    store.trust_roots(both.clone()).unwrap();
    pass(14).await;
    assert_eq!(asked(), 2);
    pass(50).await;
    assert_eq!(asked(), 4);
    let after = [serial(&store, "a").await.unwrap(), serial(&store, "b").await.unwrap()];
    assert!(before.iter().all(|serial| !after.contains(serial)), "{before:?} {after:?}");
    // The same ones in another order.
    both.reverse();
    store.trust_roots(both.clone()).unwrap();
    pass(70).await;
    assert_eq!(asked(), 4);
    // A pod that comes while it may still be the old CA that signs.
    both.remove(0);
    store.trust_roots(both.clone()).unwrap();
    store.retain(&ids(&["c"]));
    serial(&store, "c").await.unwrap();
    assert_eq!(asked(), 5);
    pass(70).await;
    assert_eq!(asked(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_ends_before_the_renewal_makes_up_for_it() {
    let dir = Dir::new("made-up-for");
    let (ca, new) = (dir.ca("ca"), dir.ca("new"));
    let store = dir.store(&ca, 24 * 3600);
    store.trust_roots(ca.inner.roots()).unwrap();
    store.retain(&ids(&["a"]));
    serial(&store, "a").await.unwrap();
    let both = [ca.inner.roots(), new.inner.roots()].concat();
    store.trust_roots(both.clone()).unwrap();
    drop(store);
    let asked = || ca.asked.load(Ordering::Relaxed);
    // Twice: once it is renewed, the roots are those that it was issued under.
    for wanted in [2, 2] {
        let store = dir.store(&ca, 24 * 3600);
        store.trust_roots(both.clone()).unwrap();
        store.retain(&ids(&["a"]));
        serial(&store, "a").await.unwrap();
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(asked(), wanted);
        drop(store);
    }
}

#[test]
fn the_root_is_taken_off_a_chain() {
    let dir = Dir::new("chain");
    let ca = dir.ca("ca");
    let root = ca.inner.roots().remove(0);
    let text = fs::read_to_string(dir.0.join("ca/ca-cert.pem")).unwrap();
    let intermediate = fairlead_identity::ca::pem_certificates(text.as_bytes()).unwrap().remove(0);
    let whole = vec![intermediate.clone(), root.clone()];
    assert_eq!(split_root(whole), (vec![intermediate.clone()], Some(root.clone())));
    assert_eq!(split_root(vec![intermediate.clone()]), (vec![intermediate], None));
    assert_eq!(split_root(vec![root.clone()]), (vec![root], None));
    assert_eq!(split_root(Vec::new()), (Vec::new(), None));
}
