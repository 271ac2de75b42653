//! The store: keys only while they are needed, renewed in time, refusals with reasons.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fairlead_identity::{
    CaClient, CaDirectory, CaError, CertificateError, IdentityStore, SignFuture, StoreSettings,
};
use fairlead_types::SpiffeId;
use rustls::pki_types::CertificateSigningRequestDer;

/// A CA that can be made to fail, to answer for somebody else, and that keeps what it saw.
struct TestCa {
    inner: CaDirectory,
    dir: PathBuf,
    failing: AtomicBool,
    confused: AtomicBool,
    asked: AtomicUsize,
    requests: std::sync::Mutex<HashSet<Vec<u8>>>,
}

impl TestCa {
    fn new(name: &str) -> Arc<Self> {
        let dir = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        let inner = CaDirectory::open(&dir, &"cluster.local".parse().unwrap()).unwrap();
        Arc::new(Self {
            inner,
            dir,
            failing: false.into(),
            confused: false.into(),
            asked: 0.into(),
            requests: Default::default(),
        })
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl CaClient for TestCa {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap().insert(csr.to_vec());
        if self.failing.load(Ordering::Relaxed) {
            return Box::pin(async { Err(CaError::Unreachable("on holiday".into())) });
        }
        if self.confused.load(Ordering::Relaxed) {
            return Box::pin(async move {
                let other = "spiffe://cluster.local/ns/default/sa/somebody".parse().unwrap();
                self.inner.sign(csr, &other, ttl).await
            });
        }
        self.inner.sign(csr, id, ttl)
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local".parse().unwrap(), "default", account).unwrap()
}

fn settings(ttl: Duration) -> StoreSettings {
    StoreSettings { ttl, ..StoreSettings::default() }
}

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn keys_come_and_go_with_the_pods_that_need_them() {
    let ca = TestCa::new("come-and-go");
    let store = IdentityStore::new(ca.clone(), settings(Duration::from_secs(600)));
    assert_eq!(store.certificate(&id("a")).err(), Some(CertificateError::NotHeld(id("a"))));
    store.retain(&HashSet::from([id("a"), id("b")]));
    let a = store.certificate_within(&id("a"), PATIENCE).await.unwrap();
    let b = store.certificate_within(&id("b"), PATIENCE).await.unwrap();
    assert_ne!(a.serial(), b.serial());
    assert_eq!(ca.requests.lock().unwrap().len(), 2, "a key of its own for each");
    // The same pods: nothing is asked for again, the certificate stays.
    store.retain(&HashSet::from([id("a"), id("b")]));
    assert_eq!(store.certificate(&id("a")).unwrap().serial(), a.serial());
    assert_eq!(ca.asked.load(Ordering::Relaxed), 2);
    // b's last pod leaves: nothing of it is held any more.
    store.retain(&HashSet::from([id("a")]));
    assert_eq!(store.certificate(&id("b")).err(), Some(CertificateError::NotHeld(id("b"))));
    let held: Vec<_> = store.held().into_iter().map(|(id, ..)| id).collect();
    assert_eq!(held, [id("a")]);
    let weak = Arc::downgrade(&b);
    drop(b);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(weak.upgrade().is_none(), "the key of a pod that left is still in memory");
}

#[tokio::test]
async fn renewal_makes_a_new_key_at_half_life() {
    let ca = TestCa::new("half-life");
    // Certificates count in whole seconds, so up to one of these is lost.
    let ttl = Duration::from_secs(12);
    let store = IdentityStore::new(ca.clone(), settings(ttl));
    store.retain(&HashSet::from([id("a")]));
    let first = store.certificate_within(&id("a"), PATIENCE).await.unwrap();
    let started = Instant::now();
    while store.certificate(&id("a")).unwrap().serial() == first.serial() {
        assert!(started.elapsed() < ttl, "not renewed in its lifetime");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = started.elapsed();
    assert!(took > ttl.mul_f64(0.3) && took < ttl.mul_f64(0.7), "renewed after {took:?}");
    assert_eq!(ca.requests.lock().unwrap().len(), 2, "the key was used again");
}

#[tokio::test]
async fn a_failing_ca_is_retried_and_named() {
    let ca = TestCa::new("failing");
    ca.failing.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let store = IdentityStore::new(ca.clone(), settings(Duration::from_secs(600)));
    store.retain(&HashSet::from([id("a")]));
    let error = store.certificate_within(&id("a"), Duration::from_millis(500)).await.err().unwrap();
    let CertificateError::Missing { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("on holiday"), "{reason}");
    assert!(store.held()[0].2.as_ref().unwrap().contains("on holiday"));
    // Again and again, and not in a hurry.
    let asked = || ca.asked.load(Ordering::Relaxed);
    while asked() < 2 {
        assert!(begun.elapsed() < PATIENCE, "asked once");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let most = 20 * (1 + begun.elapsed().as_millis() / 500);
    assert!(asked() as u128 <= most, "{} attempts in {:?}", asked(), begun.elapsed());
    // It recovers by itself, and the failure is forgotten.
    ca.failing.store(false, Ordering::Relaxed);
    store.certificate_within(&id("a"), PATIENCE).await.unwrap();
    assert_eq!(store.held()[0].2, None);
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_taken() {
    let ca = TestCa::new("confused");
    ca.confused.store(true, Ordering::Relaxed);
    let store = IdentityStore::new(ca.clone(), settings(Duration::from_secs(600)));
    store.retain(&HashSet::from([id("a")]));
    let error = store.certificate_within(&id("a"), Duration::from_millis(300)).await.err().unwrap();
    assert!(error.to_string().contains("it is for spiffe://cluster.local/ns/default/sa/somebody"));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_the_reason() {
    let ca = TestCa::new("expired");
    let store = IdentityStore::new(ca.clone(), settings(Duration::from_secs(1)));
    store.retain(&HashSet::from([id("a")]));
    store.certificate_within(&id("a"), PATIENCE).await.unwrap();
    ca.failing.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let error = store.certificate(&id("a")).err().unwrap();
    assert!(matches!(error, CertificateError::Expired { .. }), "{error}");
    assert!(error.to_string().contains("on holiday"), "{error}");
    ca.failing.store(false, Ordering::Relaxed);
    store.certificate_within(&id("a"), PATIENCE).await.unwrap();
}
