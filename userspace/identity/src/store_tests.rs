//! What is in force when trust changes while certificates come, and renewals that panic.

use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::CertificateSigningRequestDer;

use super::*;
use crate::ca::{CaDirectory, SignFuture};

/// Signs when it has panicked so many times.
struct Panics {
    inner: CaDirectory,
    left: AtomicUsize,
    dir: PathBuf,
}

impl Panics {
    fn new(name: &str, times: usize) -> Arc<Self> {
        let dir = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        let inner = CaDirectory::open(&dir, &domain("cluster.local")).unwrap();
        Arc::new(Self { inner, left: times.into(), dir })
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl CaClient for Panics {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        let left =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "one of ours");
        self.inner.sign(csr, id, ttl)
    }
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::new(domain("cluster.local"), "default", "a").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_begun_anew() {
    let store = IdentityStore::new(Panics::new("panics", 2), StoreSettings::default());
    store.retain(&HashSet::from([id()]));
    let certificate = store.certificate_within(&id(), Duration::from_secs(5)).await;
    assert_eq!(certificate.unwrap().id(), &id());
    assert_eq!(store.held()[0].2, None);
    // What never ends is said.
    let store = IdentityStore::new(Panics::new("panics-on", usize::MAX), StoreSettings::default());
    store.retain(&HashSet::from([id()]));
    let missing = store.certificate_within(&id(), Duration::from_secs(5)).await.err().unwrap();
    assert!(missing.to_string().contains("panicked"), "{missing}");
    assert!(missing.to_string().contains(&id().to_string()), "{missing}");
}

/// Whichever of the two is quicker, and wherever they meet.
#[tokio::test]
async fn the_newest_trust_is_in_force_when_a_certificate_comes_as_it_changes() {
    let ca = Panics::new("newest", 0);
    let store = IdentityStore::new(ca.clone(), StoreSettings::default());
    store.retain(&HashSet::from([id()]));
    let first = store.certificate_within(&id(), Duration::from_secs(5)).await.unwrap();
    let slot = Arc::clone(&store.slots.load()[&id()]);
    for turn in 0..500 {
        let alias = domain(&format!("alias-{turn}.local"));
        let renewed = first.with_trust(None, &[]).unwrap();
        let begin = Barrier::new(2);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                begin.wait();
                slot.deliver(renewed, &store.source);
            });
            begin.wait();
            store.trust_aliases(std::slice::from_ref(&alias));
        });
        let current = store.certificate(&id()).unwrap();
        assert_eq!(current.trust().domains(), [domain("cluster.local"), alias], "turn {turn}");
    }
}
