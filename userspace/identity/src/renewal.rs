//! Obtaining certificates: at first, at a jittered half of their life, when the mesh's roots change,
//! and again after a failure.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use fairlead_types::SpiffeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::certificate::{Material, WorkloadCertificate};
use crate::store::{Slot, Source};
use crate::{kept, random};

/// First pause after a failed attempt; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// One attempt may take this long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds within which all certificates are renewed when the mesh's roots have changed: another CA
/// signs once every node knows its root, and what the old one signed ends with that one's root.
const AFTER_ROOTS: (f64, f64) = (15.0, 60.0);

impl Source {
    /// A certificate under what is trusted now.
    fn assemble(
        &self,
        mut material: Material,
        id: &SpiffeId,
    ) -> Result<WorkloadCertificate, String> {
        let trust = self.trust.load();
        if let Some(roots) = &trust.roots {
            material.roots = roots.to_vec();
        }
        let kept = self.kept.is_some().then(|| kept::text(&material));
        let certificate = WorkloadCertificate::assemble(material, id, &trust.aliases)
            .map_err(|e| e.to_string())?;
        if trust.roots.is_some() {
            // Peers would refuse what the mesh's roots do not vouch for.
            certificate.verify().map_err(|e| e.to_string())?;
        }
        if let (Some(kept), Some(text)) = (&self.kept, kept)
            && let Err(error) = kept.keep(id, &text)
        {
            tracing::warn!(%id, %error, "the certificate could not be kept on disk");
        }
        Ok(certificate)
    }

    async fn obtain(&self, id: &SpiffeId) -> Result<WorkloadCertificate, String> {
        let obtained = Material::obtain(self.ca.as_ref(), id, self.ttl);
        match tokio::time::timeout(ATTEMPT_TIMEOUT, obtained).await {
            Ok(Ok(material)) => self.assemble(material, id),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the CA did not answer within {ATTEMPT_TIMEOUT:?}")),
        }
    }

    /// How long until a fresh certificate is renewed: about half of its life, or of the life that
    /// was wanted where the CA gave more.
    fn until_renewal(&self, certificate: &WorkloadCertificate) -> Duration {
        let left = certificate.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        left.min(self.ttl).mul_f64(random::factor(0.45, 0.55))
    }
}

/// Renews until the slot is gone. A panic is one of ours, and nothing that ends the identity: it is
/// begun anew.
pub(crate) async fn keep_renewing(source: Arc<Source>, slot: Weak<Slot>) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let begun = Instant::now();
        let mut renewal = pin!(renew(Arc::clone(&source), Weak::clone(&slot)));
        // Nothing is looked at afterwards that a panic could have left half-done: certificates are
        // put into their place as a whole.
        let panicked =
            poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| renewal.as_mut().poll(cx))) {
                Ok(polled) => polled.map(|()| false),
                Err(_) => Poll::Ready(true),
            });
        if !panicked.await {
            return;
        }
        if begun.elapsed() >= MAX_BACKOFF {
            backoff = MIN_BACKOFF;
        }
        let Some(held) = slot.upgrade() else { return };
        tracing::error!(id = %held.id, again_in = ?backoff, "renewing the certificate has panicked");
        held.failure.store(Some(Arc::new("renewing it has panicked".into())));
        drop(held);
        sleep(backoff.mul_f64(random::factor(0.5, 1.0))).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Obtains and renews one certificate until its slot is gone.
async fn renew(source: Arc<Source>, slot: Weak<Slot>) {
    let mut backoff = MIN_BACKOFF;
    let mut other_roots = source.other_roots.subscribe();
    if let Some(pause) = begin(&source, &slot) {
        wait(pause, &mut other_roots).await;
    }
    loop {
        let Some(id) = slot.upgrade().map(|s| s.id.clone()) else { return };
        let result = source.obtain(&id).await;
        let Some(slot) = slot.upgrade() else { return };
        let pause = match result {
            Ok(certificate) => {
                tracing::info!(%id, serial = certificate.serial(), "certificate issued");
                backoff = MIN_BACKOFF;
                let pause = source.until_renewal(&certificate);
                slot.deliver(certificate, &source);
                pause.max(MIN_BACKOFF)
            }
            Err(reason) => {
                tracing::warn!(%id, %reason, retry_in = ?backoff, "no certificate");
                slot.failure.store(Some(Arc::new(reason)));
                let pause = backoff.mul_f64(random::factor(0.5, 1.0));
                // With short lifetimes a long pause would be an outage.
                backoff = (backoff * 2).min(MAX_BACKOFF).min((source.ttl / 8).max(MIN_BACKOFF));
                pause
            }
        };
        drop(slot);
        wait(pause, &mut other_roots).await;
    }
}

/// Waits until the next attempt: sooner, when the mesh's roots change meanwhile, or have just
/// changed, so that it may still have been the other CA that signed.
async fn wait(pause: Duration, other_roots: &mut watch::Receiver<Option<Instant>>) {
    let mut due = Instant::now() + pause;
    let just = Duration::from_secs_f64(AFTER_ROOTS.0);
    if other_roots.borrow_and_update().is_none_or(|changed| changed.elapsed() >= just) {
        tokio::select! {
            () = sleep_until(due) => return,
            // The sender is of the source, which the renewal holds: it does not go.
            _ = other_roots.changed() => {}
        }
    }
    due = due.min(Instant::now() + after_roots());
    sleep_until(due).await;
}

fn after_roots() -> Duration {
    let (low, high) = AFTER_ROOTS;
    Duration::from_secs_f64(random::factor(low, high))
}

/// Begins with the certificate that an earlier daemon kept, if it can be used; how long until it
/// is renewed.
fn begin(source: &Source, slot: &Weak<Slot>) -> Option<Duration> {
    let slot = slot.upgrade()?;
    let trust = source.trust.load_full();
    let certificate = source.kept.as_ref()?.find(&slot.id, &trust.aliases)?;
    // The daemon ended between a change of the roots and the renewal that follows.
    let other_roots = trust.roots.as_ref().is_some_and(|roots| !certificate.trust().is_of(roots));
    let life = certificate.not_after().duration_since(certificate.not_before()).ok()?;
    let left = certificate.not_after().duration_since(SystemTime::now()).ok()?;
    tracing::info!(id = %slot.id, serial = certificate.serial(), ?left, "going on with the certificate that was kept");
    slot.deliver(certificate, source);
    let pause = left.saturating_sub(life.mul_f64(random::factor(0.45, 0.55)));
    Some(if other_roots { pause.min(after_roots()) } else { pause })
}
