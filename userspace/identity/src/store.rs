//! The certificates of this node: one per service account that has a pod here, renewed at a
//! jittered half of its life and when the mesh's roots change, read without a lock on a connection's
//! way.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use fairlead_types::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::ca::CaClient;
use crate::certificate::{CertificateInfo, IssueError, Material, WorkloadCertificate};
use crate::kept::{self, KeptCertificates};
use crate::random;

/// First pause after a failed attempt; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// One attempt may take this long.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds within which all certificates are renewed when the mesh's roots have changed: another CA
/// signs once every node knows its root, and what the old one signed ends with that one's root.
const AFTER_ROOTS: (f64, f64) = (15.0, 60.0);

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// How long certificates live.
    pub ttl: Duration,
    /// Further trust domains that peers may belong to (MeshConfig `trustDomainAliases`).
    pub trust_domain_aliases: Vec<TrustDomain>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), trust_domain_aliases: Vec::new() }
    }
}

/// Why there is no certificate to use now. A connection that needs it is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No pod of this service account is on this node.
    #[error("{0} has no pod on this node, so no certificate is held for it")]
    NotHeld(SpiffeId),
    /// The CA has not delivered yet.
    #[error("no certificate for {id} yet: {reason}")]
    Missing {
        /// For whom.
        id: SpiffeId,
        /// The last failure, or that the request is under way.
        reason: String,
    },
    /// It could not be renewed in time.
    #[error("the certificate of {id} has expired and could not be renewed: {reason}")]
    Expired {
        /// For whom.
        id: SpiffeId,
        /// The last failure.
        reason: String,
    },
}

type Slots = HashMap<SpiffeId, Arc<Slot>, foldhash::fast::RandomState>;

/// Holds and renews the certificates of the service accounts that have pods here.
pub struct IdentityStore {
    source: Arc<Source>,
    slots: ArcSwap<Slots>,
    changing: Mutex<()>,
}

/// Where certificates come from, and what is trusted beside them.
struct Source {
    ca: Arc<dyn CaClient>,
    ttl: Duration,
    kept: Option<KeptCertificates>,
    trust: ArcSwap<Trust>,
    /// When other roots than before were trusted last.
    other_roots: watch::Sender<Option<Instant>>,
}

/// What is trusted.
#[derive(Clone, Default)]
struct Trust {
    /// Instead of the roots that came with each certificate.
    roots: Option<Arc<[CertificateDer<'static>]>>,
    aliases: Arc<[TrustDomain]>,
}

struct Slot {
    id: SpiffeId,
    current: ArcSwapOption<WorkloadCertificate>,
    failure: ArcSwapOption<String>,
    delivered: Notify,
    renewal: Mutex<Option<AbortHandle>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(task) = self.renewal.get_mut().take() {
            task.abort();
        }
    }
}

impl Slot {
    fn reason(&self) -> String {
        let failure = self.failure.load();
        failure.as_ref().map_or_else(|| "the request is under way".into(), |f| f.as_ref().clone())
    }

    /// Puts a certificate in force.
    fn deliver(&self, certificate: WorkloadCertificate, source: &Source) {
        self.current.store(Some(Arc::new(certificate)));
        self.failure.store(None);
        // What is trusted may have changed since the certificate was made usable.
        self.follow(&source.trust.load());
        self.delivered.notify_waiters();
    }

    /// Has the certificate that is there go by `trust`.
    fn follow(&self, trust: &Trust) {
        let Some(current) = self.current.load_full() else { return };
        match current.with_trust(trust.roots.as_deref(), &trust.aliases) {
            Ok(certificate) => {
                // A renewal that came in between looks at the trust of then itself.
                self.current.compare_and_swap(&Some(current), Some(Arc::new(certificate)));
            }
            Err(error) => tracing::error!(id = %self.id, %error, "the new roots cannot be used"),
        }
    }

    fn certificate(&self) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        match self.current.load_full() {
            None => Err(CertificateError::Missing { id: self.id.clone(), reason: self.reason() }),
            Some(c) if c.not_after() <= SystemTime::now() => {
                Err(CertificateError::Expired { id: self.id.clone(), reason: self.reason() })
            }
            Some(c) => Ok(c),
        }
    }
}

impl IdentityStore {
    /// A store that asks `ca`; it holds nothing until [`IdentityStore::retain`].
    #[must_use]
    pub fn new(ca: Arc<dyn CaClient>, settings: StoreSettings) -> Arc<Self> {
        Self::make(ca, settings, None)
    }

    /// The same, keeping certificates with their keys on disk and beginning with those that are
    /// there.
    #[must_use]
    pub fn with_kept(
        ca: Arc<dyn CaClient>,
        settings: StoreSettings,
        kept: KeptCertificates,
    ) -> Arc<Self> {
        Self::make(ca, settings, Some(kept))
    }

    fn make(
        ca: Arc<dyn CaClient>,
        settings: StoreSettings,
        kept: Option<KeptCertificates>,
    ) -> Arc<Self> {
        let StoreSettings { ttl, trust_domain_aliases } = settings;
        let trust = Trust { roots: None, aliases: trust_domain_aliases.into() };
        Arc::new(Self {
            source: Arc::new(Source {
                ca,
                ttl,
                kept,
                trust: ArcSwap::from_pointee(trust),
                other_roots: watch::Sender::new(None),
            }),
            slots: ArcSwap::from_pointee(Slots::default()),
            changing: Mutex::new(()),
        })
    }

    /// Holds certificates of exactly `ids` from now on: keys of others are dropped, new ones are
    /// made. Needs a tokio runtime around it.
    pub fn retain(&self, ids: &HashSet<SpiffeId>) {
        let _changing = self.changing.lock();
        let old = self.slots.load();
        let mut new = Slots::default();
        for id in ids {
            let slot = old.get(id).cloned().unwrap_or_else(|| self.start(id));
            new.insert(id.clone(), slot);
        }
        self.slots.store(Arc::new(new));
        // A renewal under way holds its slot alive; it is ended here, with its key.
        for (id, slot) in old.iter() {
            if !ids.contains(id)
                && let Some(task) = slot.renewal.lock().take()
            {
                task.abort();
            }
        }
        if let Some(kept) = &self.source.kept {
            kept.retain(ids);
        }
    }

    fn start(&self, id: &SpiffeId) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            id: id.clone(),
            current: ArcSwapOption::empty(),
            failure: ArcSwapOption::empty(),
            delivered: Notify::new(),
            renewal: Mutex::new(None),
        });
        let task = tokio::spawn(renew(Arc::clone(&self.source), Arc::downgrade(&slot)));
        *slot.renewal.lock() = Some(task.abort_handle());
        slot
    }

    /// Trusts these roots from now on, whatever came with each certificate (a bundle of the mesh's
    /// roots: two at once while one replaces the other). Sessions that are open go on; new ones
    /// go by it. Where others were trusted before, all certificates are renewed within a minute.
    ///
    /// # Errors
    /// A root cannot be used, or there is none; everything stays as it was.
    pub fn trust_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<(), IssueError> {
        // Tried before anything changes.
        crate::TrustBundle::check(&roots)?;
        let _changing = self.changing.lock();
        let roots: Arc<[_]> = roots.into();
        let before = self.source.trust.load();
        let others = before.roots.as_ref().is_some_and(|before| {
            before.len() != roots.len() || roots.iter().any(|root| !before.contains(root))
        });
        self.source.trust.store(Arc::new(Trust { roots: Some(roots), ..Trust::clone(&before) }));
        self.apply_trust();
        if others {
            self.source.other_roots.send_replace(Some(Instant::now()));
        }
        Ok(())
    }

    /// Has the certificates that are held now go by these roots; those that come later bring
    /// their own. Sessions that are open go on.
    ///
    /// # Errors
    /// As [`IdentityStore::trust_roots`].
    pub fn trust_roots_now(&self, roots: &[CertificateDer<'static>]) -> Result<(), IssueError> {
        crate::TrustBundle::check(roots)?;
        let _changing = self.changing.lock();
        let trust = Trust { roots: Some(roots.into()), ..Trust::clone(&self.source.trust.load()) };
        for slot in self.slots.load().values() {
            slot.follow(&trust);
        }
        Ok(())
    }

    /// Accepts these trust domains beside the mesh's own from now on (MeshConfig
    /// `trustDomainAliases`). Sessions that are open go on.
    pub fn trust_aliases(&self, aliases: &[TrustDomain]) {
        let _changing = self.changing.lock();
        let before = self.source.trust.load();
        if *before.aliases != *aliases {
            let trust = Trust { aliases: aliases.into(), ..Trust::clone(&before) };
            self.source.trust.store(Arc::new(trust));
            self.apply_trust();
        }
    }

    fn apply_trust(&self) {
        let trust = self.source.trust.load();
        for slot in self.slots.load().values() {
            slot.follow(&trust);
        }
    }

    /// The certificate of `id`, if there is a valid one at this moment. Takes no lock.
    ///
    /// # Errors
    /// [`CertificateError`] says why there is none; the connection has to be refused.
    pub fn certificate(&self, id: &SpiffeId) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        match self.slots.load().get(id) {
            Some(slot) => slot.certificate(),
            None => Err(CertificateError::NotHeld(id.clone())),
        }
    }

    /// As [`IdentityStore::certificate`], but waits up to `patience` for the first delivery: a
    /// pod's first connection may come before the CA has answered.
    ///
    /// # Errors
    /// As [`IdentityStore::certificate`].
    pub async fn certificate_within(
        &self,
        id: &SpiffeId,
        patience: Duration,
    ) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let Some(slot) = self.slots.load().get(id).cloned() else {
            return Err(CertificateError::NotHeld(id.clone()));
        };
        // Registered before looking, so that a delivery in between is not missed.
        let mut delivered = std::pin::pin!(slot.delivered.notified());
        delivered.as_mut().enable();
        match slot.certificate() {
            Ok(certificate) => return Ok(certificate),
            Err(CertificateError::NotHeld(_)) => {}
            Err(CertificateError::Missing { .. } | CertificateError::Expired { .. }) => {
                // Which of the two happened (delivery or time out) shows in what is there now.
                let _ = tokio::time::timeout(patience, delivered).await;
            }
        }
        slot.certificate()
    }

    /// What is held, for the admin API; each with the last renewal failure, if the last renewal
    /// failed.
    #[must_use]
    pub fn held(&self) -> Vec<(SpiffeId, Option<CertificateInfo>, Option<String>)> {
        let slots = self.slots.load();
        let mut held: Vec<_> = slots
            .iter()
            .map(|(id, slot)| {
                let info = slot.current.load().as_ref().map(|c| c.info());
                let failure = slot.failure.load().as_ref().map(|f| f.as_ref().clone());
                (id.clone(), info, failure)
            })
            .collect();
        held.sort_by(|a, b| a.0.cmp(&b.0));
        held
    }
}

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
