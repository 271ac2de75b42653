//! The certificates of this node: one per service account that has a pod here, renewed in time
//! ([`crate::renewal`]), read without a lock on a connection's way.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use fairlead_types::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::ca::CaClient;
use crate::certificate::{CertificateInfo, IssueError, WorkloadCertificate};
use crate::kept::KeptCertificates;
use crate::renewal::keep_renewing;

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
pub(crate) struct Source {
    pub(crate) ca: Arc<dyn CaClient>,
    pub(crate) ttl: Duration,
    pub(crate) kept: Option<KeptCertificates>,
    pub(crate) trust: ArcSwap<Trust>,
    /// When other roots than before were trusted last.
    pub(crate) other_roots: watch::Sender<Option<Instant>>,
}

/// What is trusted.
#[derive(Clone, Default)]
pub(crate) struct Trust {
    /// Instead of the roots that came with each certificate.
    pub(crate) roots: Option<Arc<[CertificateDer<'static>]>>,
    pub(crate) aliases: Arc<[TrustDomain]>,
}

/// The place of one identity's certificate.
pub(crate) struct Slot {
    pub(crate) id: SpiffeId,
    current: ArcSwapOption<WorkloadCertificate>,
    /// Held from looking at what is trusted until a certificate that goes by it is in force, so that
    /// the newest trust is the last to be put there. Readers take no lock.
    putting: Mutex<()>,
    /// Why the last renewal failed, if it did.
    pub(crate) failure: ArcSwapOption<String>,
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
    fn new(id: SpiffeId) -> Self {
        Self {
            id,
            current: ArcSwapOption::empty(),
            putting: Mutex::new(()),
            failure: ArcSwapOption::empty(),
            delivered: Notify::new(),
            renewal: Mutex::new(None),
        }
    }

    fn reason(&self) -> String {
        let failure = self.failure.load();
        failure.as_ref().map_or_else(|| "the request is under way".into(), |f| f.as_ref().clone())
    }

    /// Puts a certificate in force, under what is trusted now: it may have changed since the
    /// certificate was made usable.
    pub(crate) fn deliver(&self, certificate: WorkloadCertificate, source: &Source) {
        {
            let _putting = self.putting.lock();
            self.put(Arc::new(certificate), &source.trust.load());
        }
        self.failure.store(None);
        self.delivered.notify_waiters();
    }

    /// Has the certificate that is there go by what is trusted now.
    fn follow(&self, source: &Source) {
        let _putting = self.putting.lock();
        if let Some(current) = self.current.load_full() {
            self.put(current, &source.trust.load());
        }
    }

    /// Has the certificate that is there go by `trust`; the next one goes by its own.
    fn follow_now(&self, trust: &Trust) {
        let _putting = self.putting.lock();
        if let Some(current) = self.current.load_full() {
            self.put(current, trust);
        }
    }

    /// Puts a certificate in force under `trust`, else as it is.
    fn put(&self, certificate: Arc<WorkloadCertificate>, trust: &Trust) {
        let certificate = match certificate.with_trust(trust.roots.as_deref(), &trust.aliases) {
            Ok(certificate) => Arc::new(certificate),
            Err(error) => {
                tracing::error!(id = %self.id, %error, "the new roots cannot be used");
                certificate
            }
        };
        self.current.store(Some(certificate));
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
        // Before anything is begun or ended: what ends keeps nothing on disk from here on.
        if let Some(kept) = &self.source.kept {
            kept.retain(ids);
        }
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
    }

    fn start(&self, id: &SpiffeId) -> Arc<Slot> {
        let slot = Arc::new(Slot::new(id.clone()));
        let task = tokio::spawn(keep_renewing(Arc::clone(&self.source), Arc::downgrade(&slot)));
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
            slot.follow_now(&trust);
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
        for slot in self.slots.load().values() {
            slot.follow(&self.source);
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

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
