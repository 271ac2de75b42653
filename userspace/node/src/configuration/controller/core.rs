//! Takes Updates in: into the store, the snapshot and the state on disk.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use fairlead_config::model::Snapshot;
use fairlead_config::source::{Load, Parsed, Store};
use fairlead_wire::config::{Held as HeldMessage, Inventory, Key, Rejection, Update};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;

use super::super::follower::Follower;
use super::objects::{self, Held, MAX_TRUST_BYTES, Version};
use super::state::{Entry, Identity, Journal, Keeper};
use super::status::Status;
use super::verdicts::{Refusal, Verdicts};
use super::{Bundle, state};
use judge::{Judged, Named};

#[path = "core_judge.rs"]
mod judge;
use crate::settings::ControllerSettings;

/// How the controller trims objects for nodes ([`fairlead_wire::config::Hello::trim`]).
pub(super) const TRIM: u32 = 1;
/// Objects in one Inventory; each is less than 2 KiB, with why it is refused.
const INVENTORY: usize = 1000;
/// After so many changed objects, what came and went with them is given back to the kernel.
const MANY: usize = 1000;
/// How long an Update waits for a slow disk.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that outlives a stream.
pub(super) struct Core {
    pub(super) node: String,
    /// Tells this start of the daemon from others.
    pub(super) instance: String,
    pub(super) status: Status,
    follower: Follower,
    store: Store,
    held: Held,
    /// What this start of the daemon refuses of that.
    verdicts: Verdicts,
    bundle: watch::Sender<Bundle>,
    /// Objects that have changed since memory was given back.
    changed: usize,
}

/// What came in a stream that is not complete yet, or in one Update.
#[derive(Default)]
pub(super) struct Staged {
    changes: HashMap<Arc<PathBuf>, Option<(Parsed, Version)>>,
    bytes: u64,
    /// The node told of nothing that it holds: what does not come has gone.
    pub(super) full: bool,
    /// Everything has come once.
    pub(super) synced: bool,
}

impl Staged {
    /// Nothing yet; `full`: the node tells of nothing that it holds.
    pub(super) fn new(full: bool) -> Self {
        Self { full, ..Self::default() }
    }
}

/// A name for this start of the daemon.
fn instance() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_nanos())
}

impl Core {
    /// Opens the state directory and takes in what is there.
    pub(super) fn open(
        settings: &ControllerSettings,
        node: &str,
        follower: Follower,
        status: Status,
        bundle: watch::Sender<Bundle>,
    ) -> anyhow::Result<(Self, Keeper)> {
        let cluster = settings.cluster_id.clone();
        let whose = Identity { node: node.to_owned(), cluster, trim: TRIM };
        let (mut journal, refused) = Journal::open(&settings.state_dir, whose)?;
        if let Some(reason) = refused {
            tracing::error!(
                dir = %settings.state_dir.display(),
                %reason,
                "the state on disk is not used, none of it; pods are served when the controller \
                 has answered"
            );
        }
        let mut core = Self {
            node: node.to_owned(),
            instance: instance(),
            status,
            follower,
            store: Store::default(),
            held: Held::default(),
            verdicts: Verdicts::default(),
            bundle,
            changed: 0,
        };
        if journal.contents().end > 0
            && let Err(reason) = core.restore(&journal)
        {
            tracing::error!(%reason, "the state on disk is not used, none of it");
            core.held = Held::default();
            core.verdicts = Verdicts::default();
            journal.clear()?;
        }
        let keeper = Keeper::start(journal).context("starting the thread that writes it")?;
        core.status.update(|facts| facts.state_bytes = keeper.bytes());
        core.rest();
        Ok((core, keeper))
    }

    /// Nothing is coming at this moment: what the last large change needed is given back.
    pub(super) fn rest(&mut self) {
        if self.changed >= MANY {
            self.changed = 0;
            fairlead_capture::give_back_memory();
        }
    }

    /// Takes in what is kept: all of it, or nothing.
    fn restore(&mut self, journal: &Journal) -> Result<(), state::StateError> {
        let contents = journal.contents();
        let mut places: Vec<_> = contents.objects.iter().collect();
        places.sort_by_key(|(_, place)| place.offset);
        let mut load = Load::default();
        let mut judged = Judged::default();
        for (path, place) in places {
            let resource = journal.resource(place)?;
            let key = resource.key.unwrap_or_default();
            let parsed = objects::read(path, &key, &resource.json);
            judged.add(path, &parsed);
            load.files.push((Arc::clone(path), parsed));
            let version = Version { version: resource.version.into(), bytes: place.bytes };
            self.held.insert(Arc::clone(path), version);
        }
        self.put_in_force(load, judged);
        let as_of = journal.as_of();
        self.status.update(|facts| {
            facts.as_of = Some(as_of);
            facts.from_state = true;
        });
        if let Some(pem) = &contents.trust {
            self.trust(pem);
        }
        let age = SystemTime::now().duration_since(as_of).unwrap_or_default();
        tracing::info!(
            objects = self.held.len(),
            age_seconds = age.as_secs(),
            "going on with the configuration that was kept, until the controller answers"
        );
        Ok(())
    }

    /// Has the store and the compiler take changes in, and judges what has come, and what else is
    /// judged otherwise for it.
    fn put_in_force(&mut self, load: Load, judged: Judged) {
        let change = self.store.apply(load);
        let rejudged = self.follower.apply(&self.store, &change);
        self.store.let_go(&change.upserted);
        self.changed += change.upserted.len() + change.removed.len();
        self.judge(judged, rejudged);
    }

    /// What is in force.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.follower.snapshots().load()
    }

    /// What the controller is told that the node holds.
    pub(super) fn inventory(&mut self, nothing: bool) -> Vec<Inventory> {
        self.verdicts.all_said();
        let held: Vec<HeldMessage> = if nothing { None } else { Some(self.held.iter()) }
            .into_iter()
            .flatten()
            .map(|(path, version)| HeldMessage {
                key: objects::key_of(path),
                version: version.version.to_string(),
                rejected: self.verdicts.refusal(path).map(Refusal::rejection),
            })
            .collect();
        let mut messages: Vec<Inventory> =
            held.chunks(INVENTORY).map(|c| Inventory { held: c.to_vec(), last: false }).collect();
        match messages.last_mut() {
            Some(last) => last.last = true,
            None => messages.push(Inventory { held: Vec::new(), last: true }),
        }
        messages
    }

    /// Takes an Update in; what of it was refused. Until everything has come once, nothing is put
    /// in force: routes without the policies that belong to them would be worse than none.
    ///
    /// # Errors
    /// The controller breaks the protocol or a bound; nothing of the Update is in force.
    pub(super) async fn take(
        &mut self,
        update: Update,
        staged: &mut Staged,
        keeper: &Keeper,
    ) -> Result<Vec<Rejection>, String> {
        let Update { upserts, removed, complete, oldest_change_micros, trust_bundle_pem, .. } =
            update;
        let bytes: u64 = upserts.iter().map(|r| r.json.len() as u64).sum();
        staged.bytes += bytes;
        if !self.held.has_room(staged.changes.len() + upserts.len(), staged.bytes) {
            return Err("it sends more objects than a node can hold".into());
        }
        let counts = [upserts.len() as u64, removed.len() as u64];
        let mut entries = Vec::with_capacity(upserts.len() + removed.len() + 1);
        for key in removed {
            let path = self.held.shared(objects::path_of(&key)?);
            staged.changes.insert(Arc::clone(&path), None);
            entries.push(Entry::Remove(path, key));
        }
        let mut named = Vec::new();
        for resource in upserts {
            let key = resource.key.clone().ok_or("it sends an object without a key")?;
            let version = Version::new(&resource.version, resource.json.len())?;
            let path = self.held.shared(objects::path_of(&key)?);
            let parsed = objects::read(&path, &key, &resource.json);
            let faults = objects::faults(&parsed.problems);
            // What stays in force stays on disk, for the next start of the daemon. An object that was
            // never right is written: whom it is for must be refused then as now.
            let stays = !faults.is_empty() && !staged.full && self.knows(&key);
            let version_text = resource.version.clone();
            named.push(Named { path: Arc::clone(&path), key, version: version_text, faults });
            staged.changes.insert(Arc::clone(&path), Some((parsed, version)));
            if !stays {
                entries.push(Entry::Upsert(path, resource));
            }
        }
        if !trust_bundle_pem.is_empty() && self.trust(&trust_bundle_pem) {
            entries.push(Entry::Trust(trust_bundle_pem));
        }
        let first = complete && !staged.synced;
        staged.synced |= complete;
        if staged.synced {
            self.apply(staged, first.then_some(&mut entries));
            // After it is in force: only then may what it does not name be let go.
            self.follower.report().lock().current = true;
        }
        keeper.write(entries, staged.synced, DISK_PATIENCE).await;
        let now = SystemTime::now();
        let rejected = self.rejections(named, staged.synced);
        self.status.update(|facts| {
            facts.updates += 1;
            facts.objects[0] += counts[0];
            facts.objects[1] += counts[1];
            facts.rejected += rejected.len() as u64;
            facts.state_bytes = keeper.bytes();
            if let Ok(oldest) = u64::try_from(oldest_change_micros)
                && oldest > 0
            {
                let oldest = SystemTime::UNIX_EPOCH + Duration::from_micros(oldest);
                facts.latency = now.duration_since(oldest).unwrap_or_default();
            }
            if staged.synced {
                facts.current = true;
                facts.from_state = false;
                facts.failure = None;
                facts.as_of = Some(now);
            }
        });
        Ok(rejected)
    }

    /// Puts in force what has come.
    fn apply(&mut self, staged: &mut Staged, mut first: Option<&mut Vec<Entry>>) {
        let mut load = Load::default();
        let mut judged = Judged::default();
        if std::mem::take(&mut staged.full)
            && let Some(entries) = first.take()
        {
            let held = self.held.iter().map(|(path, _)| path);
            let gone = held.filter(|path| !staged.changes.contains_key(*path));
            for path in gone.cloned().collect::<Vec<_>>() {
                if let Some(key) = objects::key_of(&path) {
                    entries.push(Entry::Remove(Arc::clone(&path), key));
                }
                staged.changes.insert(path, None);
            }
        }
        staged.bytes = 0;
        // With its room, which is that of everything.
        for (path, change) in std::mem::take(&mut staged.changes) {
            match change {
                None => {
                    self.held.remove(&path);
                    self.verdicts.forget(&path);
                    load.gone.push(path);
                }
                Some((parsed, version)) => {
                    judged.add(&path, &parsed);
                    self.held.insert(Arc::clone(&path), version);
                    load.files.push((path, parsed));
                }
            }
        }
        self.put_in_force(load, judged);
    }

    /// Whether there is a version of an object that could be read.
    fn knows(&self, key: &Key) -> bool {
        objects::object_key(key).is_some_and(|object| self.store.get(&object).is_some())
    }

    /// Hands on a trust bundle, if it is one.
    fn trust(&self, pem: &[u8]) -> bool {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match roots {
            Ok(roots) if !roots.is_empty() && pem.len() <= MAX_TRUST_BYTES => {
                self.bundle.send_if_modified(|bundle| {
                    let changed = bundle.as_deref() != Some(&roots[..]);
                    if changed {
                        tracing::info!(roots = roots.len(), "roots that the mesh trusts");
                        *bundle = Some(roots.into());
                    }
                    changed
                });
                true
            }
            _ => {
                tracing::error!(
                    "the controller's trust bundle is no PEM of certificates; not used"
                );
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
