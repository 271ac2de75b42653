//! Claims of addresses between replicas of the controller: one that follows tells the leading one
//! those of its own nodes, and that one tells each the claims of the nodes of all others.
//!
//! A replica tells only what counts in its own tables, and believes another no more than a node:
//! whatever it is told waits for a pod's object that runs there, names no address, and so on
//! ([`super::claims`]). What is to be told is a list of nodes, each there once, whose claims are
//! read when they go out: all that this node claims then, in place of what was told of it before.
//!
//! The last word of a node counts, wherever it said it: its newest stream comes before older ones.

use std::sync::Arc;
use std::time::Duration;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::AddressedPod;
use fairlead_wire::replica::NodeClaims;
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::World;
use super::claims::{Claim, addresses_of};
use super::state::{Map, Set, State};

/// How long claims count after the stream by which they came: whoever told them comes again.
pub(crate) const CLAIMS_STAY: Duration = Duration::from_secs(30);
/// Claims of nodes of other replicas, of all together.
const MAX_TOLD: usize = 65_536;
/// Nodes that may wait to be told of to one replica.
const MAX_NEWS: usize = 65_536;
/// Bytes of claims after which a message is full; one node's more fit into
/// [`fairlead_wire::replica::MAX_MESSAGE_BYTES`].
const FULL: usize = 1 << 20;
/// Bytes of the longest name of anything in Kubernetes.
const MAX_NAME: usize = 253;
/// Bytes of what a start of a replica may be called.
const MAX_ORIGIN: usize = 512;

/// The replica that serves a node: its start; `None`: this one.
pub(super) type Origin = Option<Arc<str>>;

/// Who told of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The node, by its stream here.
    Node,
    /// Another replica.
    Replica {
        /// The one that serves the node.
        origin: Arc<str>,
        /// The stream by which it came here.
        sharing: u64,
    },
}

impl By {
    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Node => None,
            Self::Replica { origin, .. } => Some(Arc::clone(origin)),
        }
    }

    fn came_by(&self) -> Option<u64> {
        match self {
            Self::Node => None,
            Self::Replica { sharing, .. } => Some(*sharing),
        }
    }
}

/// What another replica is to be told.
#[derive(Debug)]
pub(super) struct Outbox {
    id: u64,
    hears: Hears,
    news: Map<(Origin, Arc<str>), News>,
    wake: Arc<Notify>,
}

/// Whose nodes' claims a replica is told.
#[derive(Debug)]
enum Hears {
    /// Those of this replica's own nodes.
    Own,
    /// All but those of its own.
    AllBut(Arc<str>),
    /// None: it does not ask for it.
    Nothing,
}

/// What is to be said of a node besides its claims.
#[derive(Debug, Default)]
struct News {
    /// It has told all at the beginning of a stream.
    anew: bool,
    /// When that began.
    stream: Option<Instant>,
}

impl super::claims::Claims {
    /// The claims of a node of that replica are other ones.
    pub(super) fn note(
        &mut self,
        origin: &Origin,
        node: &Arc<str>,
        anew: bool,
        stream: Option<Instant>,
    ) {
        for outbox in &mut self.outboxes {
            let wanted = match (&outbox.hears, origin) {
                (Hears::Own, None) | (Hears::AllBut(_), None) => true,
                (Hears::AllBut(own), Some(origin)) => own != origin,
                (Hears::Own, Some(_)) | (Hears::Nothing, _) => false,
            };
            if !wanted {
                continue;
            }
            let of = (origin.clone(), Arc::clone(node));
            if outbox.news.len() >= MAX_NEWS && !outbox.news.contains_key(&of) {
                tracing::warn!(%node, "too many nodes with news of addresses; not told");
                continue;
            }
            let news = outbox.news.entry(of).or_default();
            news.anew |= anew;
            news.stream = news.stream.max(stream);
            outbox.wake.notify_one();
        }
    }
}

/// What came of claims that another replica told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Claims that were new.
    pub(crate) new: u64,
    /// Claims that cannot be, or had no room.
    pub(crate) refused: u64,
}

impl State {
    fn open_outbox(&mut self, hears: Hears, wake: Arc<Notify>) -> u64 {
        let id = self.next_epoch();
        self.claims.outboxes.push(Outbox { id, hears, news: Map::default(), wake });
        for node in self.claims.nodes() {
            let origins: Set<Origin> =
                self.claims.of_node(&node).map(|(_, claim)| claim.by.origin()).collect();
            for origin in origins {
                self.claims.note(&origin, &node, false, None);
            }
        }
        id
    }

    /// The claims of a node at that replica which count here, and when its newest stream began.
    fn claims_of(&self, origin: &Origin, node: &str) -> (Vec<AddressedPod>, Option<Instant>) {
        let mut stream = None;
        if origin.is_none() {
            let newest = self.streams(node).last().and_then(|id| self.node(*id));
            stream = newest.map(|newest| newest.since);
        }
        let mut pods = Vec::new();
        for (uid, claim) in self.claims.of_node(node) {
            if claim.by.origin() != *origin || !self.counts(uid, claim) {
                continue;
            }
            if origin.is_some() {
                stream = stream.max(claim.stream);
            }
            pods.push(AddressedPod {
                uid: uid.to_owned(),
                namespace: (*claim.key.namespace).to_owned(),
                name: (*claim.key.name).to_owned(),
                addresses: claim.addresses.iter().map(ToString::to_string).collect(),
            });
        }
        (pods, stream)
    }

    /// Whether the pod's object is handed out with what is claimed.
    fn counts(&self, uid: &str, claim: &Claim) -> bool {
        self.by_key.get(&claim.key).is_some_and(|slot| {
            let content = self.object(*slot).content.as_ref();
            self.claims.counts(*slot) && content.is_some_and(|content| content.uid() == uid)
        })
    }

    /// What is to be told next, and whether that is all.
    fn next_claims(&mut self, id: u64, own: &str) -> (Vec<NodeClaims>, bool) {
        let outbox = self.claims.outboxes.iter_mut().find(|outbox| outbox.id == id);
        let Some(outbox) = outbox else { return (Vec::new(), true) };
        let mut news = std::mem::take(&mut outbox.news).into_iter();
        let (mut told, mut bytes) = (Vec::new(), 0);
        for ((origin, node), News { anew, stream }) in news.by_ref() {
            let (pods, newest) = self.claims_of(&origin, &node);
            let age = newest.max(stream).map(|since| since.elapsed().as_millis());
            let claims = NodeClaims {
                origin: origin.as_deref().unwrap_or(own).to_owned(),
                node: (*node).to_owned(),
                age_millis: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
                anew,
                pods: pods.into_iter().map(Into::into).collect(),
            };
            bytes += claims.encoded_len();
            told.push(claims);
            if bytes >= FULL {
                break;
            }
        }
        let rest: Map<_, _> = news.collect();
        let all = rest.is_empty();
        if let Some(outbox) = self.claims.outboxes.iter_mut().find(|outbox| outbox.id == id) {
            outbox.news = rest;
        }
        (told, all)
    }

    /// Takes in what a node of another replica claims, in place of what that said before.
    fn hear_claims(&mut self, sharing: u64, told: NodeClaims) -> Heard {
        let NodeClaims { origin, node, age_millis, anew, pods } = told;
        let mut heard = Heard::default();
        let is_name = |name: &str| !name.is_empty() && name.len() <= MAX_NAME;
        if origin.is_empty() || origin.len() > MAX_ORIGIN || !is_name(&node) {
            tracing::warn!(node, "a replica tells of no node that could be one; not used");
            heard.refused = pods.len() as u64;
            return heard;
        }
        let (origin, node) = (self.name(&origin), self.name(&node));
        let since = |age| Instant::now().checked_sub(Duration::from_millis(age));
        let stream = age_millis.and_then(since);
        let by = By::Replica { origin: Arc::clone(&origin), sharing };
        {
            let still: Set<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
            self.drop_claims(&node, |uid, claim| {
                claim.is_over()
                    || match &claim.by {
                        By::Replica { origin: its, .. } if *its == origin => !still.contains(uid),
                        _ => anew && claim.stream < stream,
                    }
            });
        }
        for pod in pods {
            let key = ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name);
            let uid = pod.uid.clone();
            let addresses = addresses_of(&pod.into()).filter(|all| !all.is_empty());
            let Some(addresses) =
                addresses.filter(|_| is_name(&key.name) && is_name(&key.namespace))
            else {
                tracing::warn!(%node, pod = %key, "another replica tells no claim of addresses; not used");
                heard.refused += 1;
                continue;
            };
            let before = self.claims.of_node(&node).find(|(of, _)| **of == *uid);
            let before = before.map(|(_, before)| {
                let same = before.addresses == addresses && before.key == key;
                let newer = before.by.origin().as_ref() != Some(&origin) && before.stream > stream;
                (same, newer)
            });
            match before {
                Some((_, true)) => continue,
                Some((true, false)) => {
                    self.claims.keep(&node, &uid, by.clone(), stream);
                    continue;
                }
                Some((false, false)) | None => {}
            }
            let claim = Claim::new(key.clone(), addresses, by.clone(), stream);
            if self.claims.told >= MAX_TOLD || !self.claims.insert(&node, &uid, claim) {
                tracing::warn!(%node, pod = %key, "too many claims of addresses; not used");
                heard.refused += 1;
                continue;
            }
            heard.new += 1;
            self.claims.again.extend(self.by_key.get(&key).copied());
        }
        if anew {
            self.claims.note(&Some(Arc::clone(&origin)), &node, true, stream);
        }
        self.settle_claims();
        tracing::debug!(%node, %origin, anew, new = heard.new, "another replica tells of claims");
        heard
    }

    /// Lets claims go that other replicas told.
    fn drop_told(&mut self, goes: impl Fn(&Claim) -> bool) {
        if self.claims.told == 0 {
            return;
        }
        for node in self.claims.nodes() {
            self.drop_claims(&node, |_, claim| goes(claim));
        }
        self.settle_claims();
    }
}

/// One stream between two replicas, by which claims go both ways. When it ends, what was heard
/// counts for [`CLAIMS_STAY`], unless it is heard again.
#[derive(Debug)]
pub(crate) struct Sharing {
    world: Arc<World>,
    id: u64,
    /// What this start of this replica is called.
    own: Arc<str>,
    /// Who may be spoken for; `None`: everybody but this one.
    other: Option<Arc<str>>,
    wake: Arc<Notify>,
}

impl Sharing {
    /// The stream to the replica that leads.
    pub(crate) fn with_leader(world: Arc<World>, own: &str) -> Self {
        Self::open(world, own, None, Hears::Own)
    }

    /// The stream of one that follows; `hears`: it wants to be told.
    pub(crate) fn with_follower(world: Arc<World>, own: &str, other: &str, hears: bool) -> Self {
        let other: Arc<str> = other.into();
        let hears = if hears { Hears::AllBut(Arc::clone(&other)) } else { Hears::Nothing };
        Self::open(world, own, Some(other), hears)
    }

    fn open(world: Arc<World>, own: &str, other: Option<Arc<str>>, hears: Hears) -> Self {
        let wake = Arc::new(Notify::new());
        let id = world.state.lock().open_outbox(hears, Arc::clone(&wake));
        Self { world, id, own: own.into(), other, wake }
    }

    /// Waits until there may be something to tell.
    pub(crate) async fn news(&self) {
        self.wake.notified().await;
    }

    /// Whether there is something to tell.
    pub(crate) fn has_news(&self) -> bool {
        let state = self.world.state.lock();
        state.claims.outboxes.iter().any(|outbox| outbox.id == self.id && !outbox.news.is_empty())
    }

    /// What is to be told next, and whether that is all.
    pub(crate) fn next(&self) -> (Vec<NodeClaims>, bool) {
        self.world.state.lock().next_claims(self.id, &self.own)
    }

    /// Takes in what the other one tells.
    pub(crate) fn hear(&self, told: Vec<NodeClaims>) -> Heard {
        let mut sum = Heard::default();
        for mut claims in told {
            match &self.other {
                // It speaks for itself alone.
                Some(other) => (**other).clone_into(&mut claims.origin),
                // What this one has told itself.
                None if *claims.origin == *self.own => continue,
                None => {}
            }
            // Streams of nodes have their turn in between.
            let Heard { new, refused } = self.world.state.lock().hear_claims(self.id, claims);
            sum.new += new;
            sum.refused += refused;
        }
        sum
    }

    /// The other one has told all: what earlier streams told is over.
    pub(crate) fn heard_all(&self) {
        self.world.state.lock().drop_told(|claim| match &claim.by {
            By::Node => false,
            By::Replica { origin, sharing } => {
                *sharing != self.id && self.other.as_ref().is_none_or(|other| other == origin)
            }
        });
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let id = self.id;
        self.world.state.lock().claims.outboxes.retain(|outbox| outbox.id != id);
        let world = Arc::clone(&self.world);
        let forget = move || {
            world.state.lock().drop_told(|claim| claim.by.came_by() == Some(id));
        };
        match Handle::try_current() {
            Ok(runtime) => {
                let until = Instant::now() + CLAIMS_STAY;
                runtime.spawn(async move {
                    tokio::time::sleep_until(until).await;
                    forget();
                });
            }
            // Nobody who could wait: the process ends.
            Err(_) => forget(),
        }
    }
}
