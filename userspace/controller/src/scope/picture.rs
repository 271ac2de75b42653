//! What another replica told of its nodes: read from its reports, which are believed only where
//! they make sense.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::{Fault, Rejection};
use fairlead_wire::replica::{self as wire, MAX_OBJECTS, MAX_STREAMS, Report};
use tokio::time::Instant;

use super::node_set::{NodeId, NodeSet};
use super::object::Content;
use super::state::Map;
use super::verdicts::{MAX_REJECTIONS, bounded};

/// Bytes of the longest name of anything in Kubernetes.
const MAX_NAME: usize = 253;
/// Bytes of a version: a UID and a hash.
const MAX_VERSION: usize = 320;
/// Bytes of names, versions and sets of one picture: 50 000 objects with 10 000 nodes that need each.
const MAX_BYTES: usize = 128 << 20;
/// Bytes of reasons that are kept of one replica; beyond that a refusal has none.
const MAX_REASONS: usize = 16 << 20;

/// Why a report is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Nonsense {
    /// A number, name or set that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// More than is kept.
    #[error("more than {0} {1}")]
    TooMuch(usize, &'static str),
    /// The picture that it changes is not there any more.
    #[error("nothing is known of what it changes")]
    Unknown,
}

impl From<Nonsense> for tonic::Status {
    fn from(nonsense: Nonsense) -> Self {
        let text = nonsense.to_string();
        match nonsense {
            Nonsense::Invalid(_) => Self::invalid_argument(text),
            Nonsense::TooMuch(..) => Self::resource_exhausted(text),
            Nonsense::Unknown => Self::aborted(text),
        }
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, Nonsense> {
    Err(Nonsense::Invalid(text.into()))
}

/// What was said of an object.
#[derive(Debug)]
pub(super) struct Said {
    version: Box<str>,
    generation: i64,
    pub(super) needed: NodeSet,
    pub(super) taken: NodeSet,
    pub(super) refused: BTreeMap<NodeId, Arc<Rejection>>,
    /// Bytes of the reasons in there.
    reasons: usize,
    /// Bytes of the rest, with the object's name.
    bytes: usize,
}

/// A stream of a node.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) node: Arc<str>,
    pub(super) since: Instant,
}

/// A refusal or, without one, that a node had not answered, by a stream that is gone.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) node: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) refusal: Option<Arc<Rejection>>,
}

/// What a report changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(super) keys: Vec<ObjectKey>,
    /// Streams came or went.
    pub(super) streams: bool,
    /// The last words of those that went.
    pub(super) departed: Vec<(ObjectKey, Word)>,
}

/// What one replica told.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    /// It is of the same version as this one.
    same_build: bool,
    pub(super) streams: Vec<Option<Stream>>,
    pub(super) objects: Map<ObjectKey, Said>,
    reasons: usize,
    bytes: usize,
    /// One reason for all that have none.
    bare: [Arc<Rejection>; 2],
}

impl Picture {
    /// Nothing yet, of a replica of this version of the controller.
    pub(crate) fn of(version: &str) -> Self {
        let bare = [false, true];
        Self {
            same_build: version == env!("CARGO_PKG_VERSION"),
            bare: bare.map(|last_good| Arc::new(Rejection { last_good, ..Rejection::default() })),
            ..Self::default()
        }
    }

    /// Whether what was said is about this content.
    pub(super) fn is_about(&self, said: &Said, content: &Content) -> bool {
        *said.version == *content.version
            || (!self.same_build
                && said.generation == content.generation
                && uid(&said.version) == uid(&content.version))
    }

    /// Whether any of its streams is not in `shadowed`.
    pub(super) fn has_stream_besides(&self, shadowed: &NodeSet) -> bool {
        let mut streams = self.streams.iter().enumerate();
        streams.any(|(id, stream)| stream.is_some() && !shadowed.contains(id))
    }

    /// Takes a report in. After an error, the stream that it came by has to end.
    pub(crate) fn take(&mut self, report: Report) -> Result<Changes, Nonsense> {
        let mut changes = Changes {
            streams: !report.ended.is_empty() || !report.begun.is_empty(),
            ..Changes::default()
        };
        self.end(&report.ended, &mut changes)?;
        for stream in report.begun {
            self.begin(stream)?;
        }
        for verdict in report.verdicts {
            let key = key(verdict.key.as_ref())?;
            let mut said = self.said(verdict)?;
            said.bytes += key.namespace.len() + key.name.len();
            self.put(&key, said)?;
            changes.keys.push(key);
        }
        for gone in &report.gone {
            let key = key(Some(gone))?;
            if let Some(old) = self.objects.remove(&key) {
                self.reasons -= old.reasons;
                self.bytes -= old.bytes;
                changes.keys.push(key);
            }
        }
        Ok(changes)
    }

    fn begin(&mut self, stream: wire::Stream) -> Result<(), Nonsense> {
        let id = stream.id as usize;
        if id >= MAX_STREAMS {
            return Err(Nonsense::TooMuch(MAX_STREAMS, "streams"));
        }
        if !is_name(&stream.node) {
            return invalid(format!("stream {id} is of no node"));
        }
        if self.streams.len() <= id {
            self.streams.resize(id + 1, None);
        }
        if self.streams[id].is_some() {
            return invalid(format!("stream {id} has begun already"));
        }
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(stream.age_millis)).unwrap_or(now);
        self.streams[id] = Some(Stream { node: stream.node.into(), since });
        Ok(())
    }

    fn end(&mut self, ended: &[u32], changes: &mut Changes) -> Result<(), Nonsense> {
        let mut gone = NodeSet::default();
        for id in ended {
            let id = *id as usize;
            if self.streams.get(id).is_none_or(Option::is_none) || !gone.insert(id) {
                return invalid(format!("stream {id} ends and is not there"));
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        for (key, said) in &mut self.objects {
            let touched = said.needed.intersection(&gone);
            if touched.is_empty() {
                continue;
            }
            for id in touched.iter() {
                if !said.taken.contains(id)
                    && let Some(Some(stream)) = self.streams.get(id)
                {
                    let word = Word {
                        node: Arc::clone(&stream.node),
                        version: (*said.version).into(),
                        refusal: said.refused.get(&id).cloned(),
                    };
                    changes.departed.push((key.clone(), word));
                }
                said.refused.remove(&id);
            }
            said.needed = said.needed.without(&gone);
            said.taken = said.taken.without(&gone);
            changes.keys.push(key.clone());
        }
        for id in gone.iter() {
            self.streams[id] = None;
        }
        Ok(())
    }

    fn said(&self, verdict: wire::Verdict) -> Result<Said, Nonsense> {
        let wire::Verdict { version, generation, refused, .. } = verdict;
        if version.is_empty() || version.len() > MAX_VERSION {
            return invalid("a verdict is about no version");
        }
        let set = |bytes: &[u8]| {
            let set = NodeSet::from_bytes(bytes, MAX_STREAMS);
            set.ok_or(Nonsense::TooMuch(MAX_STREAMS, "streams"))
        };
        let (needed, taken) = (set(&verdict.needed)?, set(&verdict.taken)?);
        if needed.iter().any(|id| self.streams.get(id).is_none_or(Option::is_none)) {
            return invalid("an object is needed by a stream that is not there");
        }
        if !taken.without(&needed).is_empty() {
            return invalid("an object is taken by a stream that does not need it");
        }
        let refusals = refused.len().min(MAX_STREAMS) * size_of::<(NodeId, Arc<Rejection>)>();
        let mut said = Said {
            bytes: version.len() + verdict.needed.len() + verdict.taken.len() + refusals,
            version: version.into(),
            generation,
            needed,
            taken,
            refused: BTreeMap::new(),
            reasons: 0,
        };
        for refusal in refused {
            let id = refusal.stream as usize;
            if !said.needed.contains(id) || said.taken.contains(id) {
                return invalid(format!("stream {id} refuses what it does not need, or took"));
            }
            let (last_good, more) = (refusal.last_good, refusal.more);
            let some = said.refused.len() < MAX_REJECTIONS && !refusal.faults.is_empty();
            let rejection = bounded(Rejection {
                last_good,
                more,
                faults: refusal.faults.into_iter().map(fault).collect(),
                ..Rejection::default()
            });
            let reasons = bytes_of(&rejection);
            let kept = if some && self.reasons + said.reasons + reasons <= MAX_REASONS {
                said.reasons += reasons;
                Arc::new(rejection)
            } else {
                Arc::clone(&self.bare[usize::from(last_good)])
            };
            if said.refused.insert(id, kept).is_some() {
                return invalid(format!("stream {id} refuses an object twice"));
            }
        }
        Ok(said)
    }

    fn put(&mut self, key: &ObjectKey, said: Said) -> Result<(), Nonsense> {
        if self.objects.len() >= MAX_OBJECTS && !self.objects.contains_key(key) {
            return Err(Nonsense::TooMuch(MAX_OBJECTS, "objects"));
        }
        self.reasons += said.reasons;
        self.bytes += said.bytes;
        if let Some(old) = self.objects.insert(key.clone(), said) {
            self.reasons -= old.reasons;
            self.bytes -= old.bytes;
        }
        if self.bytes > MAX_BYTES {
            return Err(Nonsense::TooMuch(MAX_BYTES, "bytes"));
        }
        Ok(())
    }
}

/// The first part of a version.
fn uid(version: &str) -> Option<&str> {
    version.rsplit_once('/').map(|(uid, _)| uid)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME
}

fn key(key: Option<&wire::Key>) -> Result<ObjectKey, Nonsense> {
    let Some(key) = key else { return invalid("a verdict is about no object") };
    let Some(kind) = Kind::from_name(&key.kind).filter(|kind| kind.is_istio()) else {
        return invalid("an object is of none of Istio's kinds");
    };
    if !is_name(&key.name) || key.namespace.len() > MAX_NAME {
        return invalid("an object has no name that could be one");
    }
    Ok(ObjectKey::new(kind, &key.namespace, &key.name))
}

fn fault(fault: wire::Fault) -> Fault {
    Fault { field: fault.field, message: fault.message, allowed: fault.allowed }
}

fn bytes_of(rejection: &Rejection) -> usize {
    let texts = |fault: &Fault| fault.field.len() + fault.message.len() + fault.allowed.len();
    rejection.faults.iter().map(|fault| texts(fault) + size_of::<Fault>()).sum()
}
