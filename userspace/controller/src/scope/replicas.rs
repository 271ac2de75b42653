//! The nodes of other replicas, as the leading one knows them; and which stream of a node counts.
//!
//! A node counts once, by its newest stream. Where that has not answered yet, the last word of an
//! older one about the same version still stands: a node that moves from one replica to another
//! has not changed its mind meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::ObjectKey;
use fairlead_wire::config::Rejection;
use fairlead_wire::replica::Report;
use tokio::time::Instant;

use super::node_set::{NodeId, NodeSet};
use super::object::{Content, Object, Slot};
use super::picture::{Nonsense, Picture, Said, Word};
use super::state::{Map, Set, State};

/// How long nodes whose stream, or whose replica's stream, has ended are reckoned with: they are on
/// their way to some replica.
pub(crate) const GRACE: Duration = Duration::from_secs(15);
/// Replicas that may report.
pub(crate) const MAX_REPLICAS: usize = 16;
/// Pictures that are kept, of replicas that are gone included.
const MAX_PICTURES: usize = 2 * MAX_REPLICAS;
/// Last words of streams that are kept; the oldest go for new ones.
const MAX_DEPARTED: usize = 65_536;

/// All that others told.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    pictures: Vec<Kept>,
    /// Last words of streams that ended.
    departed: Map<ObjectKey, Vec<(Instant, Word)>>,
    /// When each of them is to be forgotten.
    departures: VecDeque<(Instant, ObjectKey)>,
    roster: Roster,
    /// Streams came or went since the roster was made.
    pub(super) roster_is_old: bool,
}

#[derive(Debug)]
struct Kept {
    session: u64,
    /// The pod of the replica.
    pod: Arc<str>,
    /// Its start.
    instance: String,
    picture: Picture,
    /// Its stream has ended: when it is to be forgotten.
    until: Option<Instant>,
}

/// Where a stream goes: here, or to the replica of that picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Here,
    There(usize),
}

/// Which streams count.
#[derive(Debug, Default)]
struct Roster {
    /// Streams of nodes that have a newer one, here and by picture.
    here: NodeSet,
    there: Vec<NodeSet>,
    /// Those, by node, the newest first.
    older: Map<Arc<str>, Vec<(At, NodeId)>>,
    /// All nodes.
    nodes: Set<Arc<str>>,
}

/// The sum over all nodes.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) needed: usize,
    pub(super) taken: usize,
    pub(super) refused: Vec<(Arc<str>, Arc<Rejection>)>,
    /// The others of those that need it: they have not answered.
    pub(super) waiting: Vec<Arc<str>>,
    /// Replicas that have not told of this version yet.
    pub(super) behind: usize,
    /// Nodes that have answered since their last words.
    pub(super) answered: Vec<Arc<str>>,
}

impl State {
    /// Takes the picture of a session in: in place of what the same start of the replica told
    /// before, and beside what an earlier one did, whose nodes are on their way.
    pub(super) fn adopt(&mut self, session: u64, pod: &str, instance: &str, picture: Picture) {
        let old = self.replicas.pictures.iter().position(|kept| kept.instance == instance);
        if let Some(old) = old {
            self.drop_picture(old);
        }
        if self.replicas.pictures.len() >= MAX_PICTURES {
            let lost = |kept: &Kept| kept.until;
            let all = self.replicas.pictures.iter().enumerate();
            let oldest = all.filter_map(|(at, kept)| Some((lost(kept)?, at))).min();
            self.drop_picture(oldest.map_or(0, |(_, at)| at));
        }
        let keys: Vec<ObjectKey> = picture.objects.keys().cloned().collect();
        self.replicas.pictures.push(Kept {
            session,
            pod: pod.into(),
            instance: instance.to_owned(),
            picture,
            until: None,
        });
        self.replicas.roster_is_old = true;
        self.list_keys(keys);
    }

    /// Takes a report about a picture in.
    pub(super) fn amend(&mut self, session: u64, report: Report) -> Result<(), Nonsense> {
        let mut pictures = self.replicas.pictures.iter_mut();
        let kept = pictures.find(|kept| kept.session == session).ok_or(Nonsense::Unknown)?;
        let changes = kept.picture.take(report)?;
        self.replicas.roster_is_old |= changes.streams;
        for (key, word) in changes.departed {
            self.replicas.keep_word(key, word);
        }
        self.list_keys(changes.keys);
        Ok(())
    }

    /// The stream of a session has ended. What it told stays for [`GRACE`] if it is of use.
    pub(super) fn lose(&mut self, session: u64, stays: bool) {
        let Some(at) = self.replicas.pictures.iter().position(|kept| kept.session == session)
        else {
            return;
        };
        if stays {
            self.replicas.pictures[at].until = Some(Instant::now() + GRACE);
        } else {
            self.drop_picture(at);
        }
    }

    fn drop_picture(&mut self, at: usize) {
        let kept = self.replicas.pictures.swap_remove(at);
        self.replicas.roster_is_old = true;
        self.list_keys(kept.picture.objects.into_keys());
    }

    /// Forgets what was to be reckoned with until now; when there will be more of that.
    pub(super) fn forget_lost(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let over = |kept: &Kept| kept.until.is_some_and(|until| until <= now);
        while let Some(at) = self.replicas.pictures.iter().position(over) {
            tracing::info!(
                pod = &*self.replicas.pictures[at].pod,
                "nodes of a replica are forgotten"
            );
            self.drop_picture(at);
        }
        let mut keys = Vec::new();
        while self.replicas.departures.front().is_some_and(|(until, _)| *until <= now) {
            keys.extend(self.replicas.forget_word());
        }
        self.list_keys(keys);
        let pictures = self.replicas.pictures.iter().filter_map(|kept| kept.until);
        pictures.chain(self.replicas.departures.front().map(|(until, _)| *until)).min()
    }

    fn list_keys(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        for key in keys {
            if self.by_key.contains_key(&key) {
                self.verdicts.insert(key);
            }
        }
    }

    /// The pods whose replicas have told all and have a stream now.
    pub(super) fn reporting(&self) -> impl Iterator<Item = &str> {
        let live = self.replicas.pictures.iter().filter(|kept| kept.until.is_none());
        live.map(|kept| &*kept.pod)
    }

    /// Remembers the last words of a stream that ends here about an object that it needed and did
    /// not take.
    pub(super) fn keep_last_word(&mut self, node: &Arc<str>, id: NodeId, slot: Slot) {
        let Object { key, content: Some(content), taken, refusals, .. } = self.object(slot) else {
            return;
        };
        if key.kind.is_istio() && !taken.contains(id) {
            let word = Word {
                node: Arc::clone(node),
                version: Arc::clone(&content.version),
                refusal: refusals.get(&id).cloned(),
            };
            let key = key.clone();
            self.replicas.keep_word(key, word);
        }
    }

    /// Makes the roster if streams came or went.
    pub(super) fn call_the_roll(&mut self) {
        if !std::mem::take(&mut self.replicas.roster_is_old) {
            return;
        }
        let mut roster = Roster::default();
        let mut streams: Map<Arc<str>, Vec<(Instant, At, NodeId)>> = Map::default();
        for id in self.connected.iter() {
            let Some(node) = self.node(id) else { continue };
            let of = streams.entry(Arc::clone(&node.name)).or_default();
            of.push((node.since, At::Here, id));
        }
        for (at, kept) in self.replicas.pictures.iter().enumerate() {
            roster.there.push(NodeSet::default());
            for (id, stream) in kept.picture.streams.iter().enumerate() {
                let Some(stream) = stream else { continue };
                let of = streams.entry(Arc::clone(&stream.node)).or_default();
                of.push((stream.since, At::There(at), id));
            }
        }
        for (node, mut of) in streams {
            if of.len() > 1 {
                // The newest first; of such as are equally new, the one that goes here.
                of.sort_by_key(|(since, ..)| std::cmp::Reverse(*since));
                let older: Vec<_> = of.drain(1..).map(|(_, at, id)| (at, id)).collect();
                for (at, id) in &older {
                    match at {
                        At::Here => roster.here.insert(*id),
                        At::There(at) => roster.there[*at].insert(*id),
                    };
                }
                roster.older.insert(Arc::clone(&node), older);
            }
            roster.nodes.insert(node);
        }
        self.replicas.roster = roster;
    }

    /// Forgets the last words of nodes that have said something about an object since.
    pub(super) fn forget_answered(&mut self, key: &ObjectKey, answered: &[Arc<str>]) {
        if answered.is_empty() {
            return;
        }
        if let Some(words) = self.replicas.departed.get_mut(key) {
            words.retain(|(_, word)| !answered.contains(&word.node));
        }
    }

    /// What all nodes make of an object. The roster has to be called before.
    pub(super) fn sum(&self, object: &Object, content: &Content) -> Sum {
        let Replicas { pictures, departed, roster, .. } = &self.replicas;
        let departed = departed.get(&object.key).map_or(&[][..], Vec::as_slice);
        let departed = || {
            let words = departed.iter().rev().map(|(_, word)| word);
            words.filter(|word| *word.version == *content.version)
        };
        let mut sum = Sum::default();
        let mut pending: Vec<&Arc<str>> = Vec::new();
        let name = |id: NodeId| self.node(id).map(|node| &node.name);
        let own = Words {
            needed: &object.wanted,
            taken: &object.taken,
            refused: &object.refusals,
            is_current: true,
        };
        own.add(&roster.here, name, &mut sum, &mut pending);
        for (kept, shadowed) in pictures.iter().zip(&roster.there) {
            let picture = &kept.picture;
            let said = picture.objects.get(&object.key);
            let words = said.map(|said| Words::of(picture, said, content));
            // Whoever is gone and whose nodes have all come back elsewhere has no say any more.
            let counts = kept.until.is_none() || picture.has_stream_besides(shadowed);
            sum.behind += usize::from(counts && !words.as_ref().is_some_and(|w| w.is_current));
            let name = |id: NodeId| {
                picture.streams.get(id).and_then(Option::as_ref).map(|stream| &stream.node)
            };
            if let Some(words) = words {
                words.add(shadowed, name, &mut sum, &mut pending);
            }
        }
        // Here and below nobody is on most days.
        let has_answered =
            |word: &&Word| roster.nodes.contains(&word.node) && !pending.contains(&&word.node);
        let answered = departed().filter(has_answered).map(|word| Arc::clone(&word.node));
        sum.answered = answered.collect();
        for node in pending {
            let older = roster.older.get(node).into_iter().flatten();
            let mut word = older.filter_map(|(at, id)| {
                let words = match at {
                    At::Here => Words { ..own },
                    At::There(at) => {
                        let picture = &pictures.get(*at)?.picture;
                        Words::of(picture, picture.objects.get(&object.key)?, content)
                    }
                };
                words.word(*id)
            });
            match word.next() {
                Some(None) => sum.taken += 1,
                Some(Some(refusal)) => sum.refused.push((Arc::clone(node), refusal)),
                None => {
                    let last = departed().find(|word| word.node == *node);
                    match last.and_then(|word| word.refusal.clone()) {
                        Some(refusal) => sum.refused.push((Arc::clone(node), refusal)),
                        None => sum.waiting.push(Arc::clone(node)),
                    }
                }
            }
        }
        let mut seen: Set<&Arc<str>> = Set::default();
        for word in departed() {
            if !roster.nodes.contains(&word.node) && seen.insert(&word.node) {
                sum.needed += 1;
                match word.refusal.clone() {
                    Some(refusal) => sum.refused.push((Arc::clone(&word.node), refusal)),
                    None => sum.waiting.push(Arc::clone(&word.node)),
                }
            }
        }
        // Those with a reason first: the others are many.
        sum.refused.sort_by(|one, other| {
            let by = |of: &(Arc<str>, Arc<Rejection>)| (of.1.faults.is_empty(), Arc::clone(&of.0));
            by(one).cmp(&by(other))
        });
        sum
    }
}

impl Replicas {
    fn keep_word(&mut self, key: ObjectKey, word: Word) {
        let now = Instant::now();
        while self.departures.len() >= MAX_DEPARTED
            || self.departures.front().is_some_and(|(until, _)| *until <= now)
        {
            self.forget_word();
        }
        self.departures.push_back((now + GRACE, key.clone()));
        self.departed.entry(key).or_default().push((now + GRACE, word));
    }

    /// Forgets the oldest; which object it was about.
    fn forget_word(&mut self) -> Option<ObjectKey> {
        let (until, key) = self.departures.pop_front()?;
        if let Some(words) = self.departed.get_mut(&key) {
            // They are in the order of their coming.
            let over = words.iter().take_while(|(of, _)| *of <= until).count();
            words.drain(..over.min(1));
            if words.is_empty() {
                self.departed.remove(&key);
            }
        }
        Some(key)
    }
}

/// What the streams of one replica say of an object.
#[derive(Clone, Copy)]
struct Words<'a> {
    needed: &'a NodeSet,
    taken: &'a NodeSet,
    refused: &'a std::collections::BTreeMap<NodeId, Arc<Rejection>>,
    /// They are about its present version.
    is_current: bool,
}

impl<'a> Words<'a> {
    fn of(picture: &Picture, said: &'a Said, content: &Content) -> Self {
        let is_current = picture.is_about(said, content);
        Self { needed: &said.needed, taken: &said.taken, refused: &said.refused, is_current }
    }

    /// What one said: nothing, that it took it, or why not.
    fn word(&self, id: NodeId) -> Option<Option<Arc<Rejection>>> {
        if !self.is_current || !self.needed.contains(id) {
            return None;
        }
        match self.refused.get(&id) {
            Some(refusal) => Some(Some(Arc::clone(refusal))),
            None => self.taken.contains(id).then_some(None),
        }
    }

    fn add<'n>(
        &self,
        shadowed: &NodeSet,
        name: impl Fn(NodeId) -> Option<&'n Arc<str>>,
        sum: &mut Sum,
        pending: &mut Vec<&'n Arc<str>>,
    ) {
        let needed = self.needed.without(shadowed);
        sum.needed += needed.len();
        if !self.is_current {
            pending.extend(needed.iter().filter_map(name));
            return;
        }
        sum.taken += self.taken.without(shadowed).len();
        for id in needed.without(self.taken).iter() {
            let Some(node) = name(id) else { continue };
            match self.refused.get(&id) {
                Some(refusal) => sum.refused.push((Arc::clone(node), Arc::clone(refusal))),
                None => pending.push(node),
            }
        }
    }
}
