//! Sessions by destination: found without waiting, dialled once however many want one, never
//! shared between identities or pods.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use fairlead_identity::IdentityStore;
use fairlead_types::{NetnsCookie, SpiffeId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::error::TransportError;
use super::session::{self, Place, Session};
use super::{Target, Wire, limits};
use crate::path::{Found, Known, Path};

/// Independent parts of the pool, so that nodes with many pods do not queue at one lock.
const SHARDS: usize = 16;

/// What has to be equal for two streams to share a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of the rest, computed once: a key is looked up for every stream.
    hash: u64,
    /// The pod: a session leaves from its namespace and address.
    pub(super) pod: NetnsCookie,
    /// Whom the session proves to be.
    pub(super) source: SpiffeId,
    pub(super) to: SocketAddr,
    pub(super) wire: Wire,
    /// Whom the peer has to prove to be.
    pub(super) expect: Arc<[SpiffeId]>,
}

static HASHER: LazyLock<foldhash::fast::RandomState> = LazyLock::new(Default::default);

impl Key {
    pub(super) fn new(
        pod: NetnsCookie,
        source: SpiffeId,
        to: SocketAddr,
        wire: Wire,
        expect: Arc<[SpiffeId]>,
    ) -> Self {
        let hash = HASHER.hash_one((pod, &source, to, wire, &expect));
        Self { hash, pod, source, to, wire, expect }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

type Shard = RwLock<HashMap<Key, Arc<Group>, foldhash::fast::RandomState>>;

/// All sessions of a node.
pub(super) struct Pool {
    shards: [Shard; SHARDS],
}

/// The sessions to one destination.
struct Group {
    sessions: ArcSwap<Vec<Arc<Session>>>,
    dialing: tokio::sync::Mutex<()>,
    /// The last failed dial: those who waited for it share its outcome.
    failed: Mutex<Option<(Instant, TransportError)>>,
    freed: Arc<Notify>,
    path: Arc<Path>,
}

/// What the admin API shows of one destination.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The source identity.
    pub source: SpiffeId,
    /// The address of the sessions.
    pub to: SocketAddr,
    /// The wire form.
    pub wire: Wire,
    /// Open sessions.
    pub sessions: usize,
    /// Streams on them.
    pub streams: usize,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self { shards: Default::default() }
    }

    fn shard(&self, key: &Key) -> &Shard {
        let index = (key.hash >> 32) as usize % SHARDS;
        &self.shards[index]
    }

    fn group(&self, key: &Key) -> Arc<Group> {
        let shard = self.shard(key);
        if let Some(group) = shard.read().get(key) {
            return group.clone();
        }
        shard.write().entry(key.clone()).or_insert_with(|| Arc::new(Group::new())).clone()
    }

    /// A place for a stream to `target`, on an open session or a new one.
    pub(super) async fn place(
        &self,
        target: &Target,
        identity: &Arc<IdentityStore>,
    ) -> Result<Place, TransportError> {
        let group = self.group(target.key());
        let now = Instant::now();
        match group.path.known(now) {
            Known::Fresh => {}
            Known::Due => group.walk(target, identity),
            Known::Stale => group.leave(),
        }
        match group.find(now) {
            Some(place) => Ok(place),
            None => match timeout(limits::PLACE_TIMEOUT, group.dial(target, identity)).await {
                Ok(result) => result,
                Err(_) => Err(TransportError::Timeout {
                    what: "waiting for a session",
                    limit: limits::PLACE_TIMEOUT,
                }),
            },
        }
    }

    /// Whether there is an open session to `target`.
    pub(super) fn has_session(&self, target: &Target) -> bool {
        let now = Instant::now();
        let shard = self.shard(target.key()).read();
        shard.get(target.key()).is_some_and(|g| {
            g.path.known(now) != Known::Stale && g.sessions.load().iter().any(|s| s.is_open(now))
        })
    }

    /// Lets go of sessions that are idle, dead or retired; those with streams end with them.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            let mut empty = Vec::new();
            for (key, group) in shard.read().iter() {
                group.keep(|s| s.is_open(now) && !s.is_idle(now));
                if group.sessions.load().is_empty() {
                    empty.push(key.clone());
                }
            }
            if empty.is_empty() {
                continue;
            }
            let mut shard = shard.write();
            for key in empty {
                // Whoever holds the group (a dial under way) keeps it; a session that it opens
                // then serves its own streams and is dropped with them.
                if shard
                    .get(&key)
                    .is_some_and(|g| Arc::strong_count(g) == 1 && g.sessions.load().is_empty())
                {
                    shard.remove(&key);
                }
            }
        }
    }

    /// Lets go of all sessions for which `keep` says no.
    pub(super) fn retain(&self, keep: impl Fn(&Key) -> bool) {
        for shard in &self.shards {
            shard.write().retain(|key, group| {
                let keep = keep(key);
                if !keep {
                    group.keep(|_| false);
                }
                keep
            });
        }
    }

    pub(super) fn info(&self) -> Vec<SessionInfo> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for (key, group) in shard.read().iter() {
                let sessions = group.sessions.load();
                all.push(SessionInfo {
                    source: key.source.clone(),
                    to: key.to,
                    wire: key.wire,
                    sessions: sessions.len(),
                    streams: sessions.iter().map(|s| s.active()).sum(),
                });
            }
        }
        all
    }
}

impl Group {
    fn new() -> Self {
        Self {
            sessions: ArcSwap::default(),
            dialing: tokio::sync::Mutex::new(()),
            failed: Mutex::new(None),
            freed: Arc::new(Notify::new()),
            path: Arc::new(Path::new()),
        }
    }

    /// A place on the first session that has one: few full sessions make larger rounds than many
    /// sparse ones. Sessions with bulk streams are left to them as long as there may be more.
    fn find(&self, now: Instant) -> Option<Place> {
        let sessions = self.sessions.load();
        let share = sessions.len() >= limits::BULK_SESSIONS;
        let open = || sessions.iter().filter(|s| s.is_open(now));
        open()
            .filter(|s| !s.is_bulk())
            .find_map(Session::place)
            .or_else(|| share.then(|| open().find_map(Session::place))?)
    }

    fn keep(&self, keep: impl Fn(&Session) -> bool) {
        if self.sessions.load().iter().all(|s| keep(s)) {
            return;
        }
        self.sessions.rcu(|old| old.iter().filter(|s| keep(s)).cloned().collect::<Vec<_>>());
    }

    async fn dial(
        &self,
        target: &Target,
        identity: &IdentityStore,
    ) -> Result<Place, TransportError> {
        let since = Instant::now();
        let _dialing = self.dialing.lock().await;
        if let Some(place) = self.find(Instant::now()) {
            return Ok(place);
        }
        if let Some((when, error)) = &*self.failed.lock()
            && *when >= since
        {
            return Err(error.clone());
        }
        self.keep(|s| s.is_open(Instant::now()));
        if self.is_full()
            && let Some(place) = self.wait_for_place().await?
        {
            return Ok(place);
        }
        match self.open(target, identity).await {
            Ok(session) => {
                let place = session.place().ok_or(TransportError::Overload(
                    "the peer allows no stream on a new session",
                ))?;
                self.sessions.rcu(|old| {
                    let mut new = Vec::with_capacity(old.len() + 1);
                    new.extend(old.iter().cloned());
                    new.push(session.clone());
                    new
                });
                Ok(place)
            }
            Err(error) => {
                *self.failed.lock() = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// One more session, of which the pool knows nothing yet.
    async fn open(
        &self,
        target: &Target,
        identity: &IdentityStore,
    ) -> Result<Arc<Session>, TransportError> {
        let certificate =
            identity.certificate_within(target.source(), limits::CERTIFICATE_TIMEOUT).await?;
        let session = session::dial(target, &certificate, self.freed.clone()).await?;
        self.path.walked();
        Ok(session)
    }

    /// No new stream starts on the sessions of now.
    fn leave(&self) {
        self.sessions.load().iter().for_each(|session| session.leave());
    }

    /// Walks the way to the destination again, beside what goes on.
    fn walk(self: &Arc<Self>, target: &Target, identity: &Arc<IdentityStore>) {
        let Some(walk) = self.path.walk() else { return };
        let (group, target, identity) = (Arc::clone(self), target.clone(), Arc::clone(identity));
        tokio::spawn(async move {
            let step = || async {
                match group.open(&target, &identity).await {
                    // What is open carries larger rounds than one more session would.
                    Ok(_) => Found::Open,
                    Err(error) if error.is_unreachable() => Found::Closed(error.to_string()),
                    // Somebody is there. Whether it is still whom the sessions are for will show.
                    Err(error) => Found::Unclear(error.to_string()),
                }
            };
            if let Err(reason) = walk.again(step).await {
                tracing::info!(
                    to = %target.connect_to(), source = %target.source(), reason,
                    "a destination cannot be reached any more: its sessions take no new streams"
                );
                group.leave();
            }
        });
    }

    fn is_full(&self) -> bool {
        self.sessions.load().len() >= limits::SESSIONS_PER_DESTINATION
    }

    /// A place on one of the sessions; none when there may be one more of these again.
    async fn wait_for_place(&self) -> Result<Option<Place>, TransportError> {
        let wait = async {
            loop {
                let (freed, now) = (self.freed.notified(), Instant::now());
                if let Some(place) = self.find(now) {
                    return Some(place);
                }
                // Those that have ended, or take no more streams, meanwhile.
                self.keep(|s| s.is_open(now));
                if !self.is_full() {
                    return None;
                }
                freed.await;
            }
        };
        // A little earlier than the wait as a whole ends, so that the reason is the one reported.
        timeout(limits::PLACE_TIMEOUT / 2, wait)
            .await
            .map_err(|_| TransportError::Overload("all sessions to the destination are full"))
    }
}
