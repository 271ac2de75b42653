//! The records of the state file.
//!
//! ```text
//! file   = MAGIC record*
//! record = length:u32le kind:u8 payload[length] sha256(length kind payload)[32]
//! ```
//!
//! The first record is a [`Kind::Header`] (JSON), then come any number of transactions: upserts
//! (a `Resource` of the protocol), removals (a `Key`), trust bundles (PEM), each transaction ended
//! by a commit (microseconds since 1970, number of records, digest of all digests so far).

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use fairlead_wire::config::{Key, Resource};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::super::objects::{MAX_OBJECT_BYTES, MAX_OBJECTS, MAX_TRUST_BYTES, path_of};

/// Begins the file; its last byte but one is the version of the format.
pub(crate) const MAGIC: &[u8; 16] = b"fairlead-state\x01\n";
/// Bytes around a payload.
pub(crate) const AROUND: usize = 4 + 1 + DIGEST;
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Longest payload: an object, its key and its version.
const MAX_PAYLOAD: usize = MAX_OBJECT_BYTES + 4096;
/// Bytes of a commit.
const COMMIT: usize = 8 + 4 + DIGEST;

pub(crate) type Digest = [u8; DIGEST];

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Header = 1,
    Upsert = 2,
    Remove = 3,
    Trust = 4,
    Commit = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Header, Self::Upsert, Self::Remove, Self::Trust, Self::Commit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Whose state it is; state of anybody else is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Name of the node.
    pub(crate) node: String,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// `Hello.trim` of what is kept.
    pub(crate) trim: u32,
}

/// Why none of the state is used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Damaged, or not a state file.
    #[error("it is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong there.
        what: String,
    },
    /// Somebody else's.
    #[error("it is that of another {what}: {found}")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// What is written.
        found: String,
    },
    /// Nothing was ever committed.
    #[error("the daemon that wrote it died before it had anything")]
    Empty,
}

/// Where an object's record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Start of the record.
    pub(crate) offset: u64,
    /// Length of the record.
    pub(crate) length: u32,
    /// Bytes of its JSON.
    pub(crate) bytes: u32,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// The objects, as of the last commit.
    pub(crate) objects: HashMap<Arc<PathBuf>, Place>,
    /// The trust bundle.
    pub(crate) trust: Option<Vec<u8>>,
    /// Time of the last commit: microseconds since 1970.
    pub(crate) at: u64,
    /// End of the last commit.
    pub(crate) end: u64,
    /// Digest of all digests up to there.
    pub(crate) chain: Digest,
    /// Whether something follows that was never committed.
    pub(crate) torn: bool,
}

/// The record of a payload.
pub(crate) fn record(kind: Kind, payload: &[u8], out: &mut Vec<u8>) -> Digest {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let digest = digest_of(length, kind as u8, payload);
    out.extend_from_slice(&length);
    out.push(kind as u8);
    out.extend_from_slice(payload);
    out.extend_from_slice(&digest);
    digest
}

/// The payload of a commit.
pub(crate) fn commit(at: u64, records: u32, chain: &Digest) -> Vec<u8> {
    let mut payload = Vec::with_capacity(COMMIT);
    payload.extend_from_slice(&at.to_le_bytes());
    payload.extend_from_slice(&records.to_le_bytes());
    payload.extend_from_slice(chain);
    payload
}

/// A whole file of records whose kinds are known, committed at its end.
pub(crate) fn seal(records: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let (mut chain, mut count) = (Digest::default(), 0);
    for (kind, payload) in records {
        let Some(kind) = Kind::of(*kind) else { continue };
        let digest = record(kind, payload, &mut out);
        if kind != Kind::Commit {
            chain = chained(&chain, &digest);
            count += 1;
        }
    }
    record(Kind::Commit, &commit(1, count, &chain), &mut out);
    out
}

/// The digest of all digests, with one more.
pub(crate) fn chained(chain: &Digest, digest: &Digest) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(chain);
    context.update(digest);
    take(context)
}

fn digest_of(length: [u8; 4], kind: u8, payload: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&length);
    context.update(&[kind]);
    context.update(payload);
    take(context)
}

fn take(context: Context) -> Digest {
    let mut out = [0; DIGEST];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// One record as it was read.
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
    pub(crate) digest: Digest,
}

/// Reads the next record, which begins at byte `at`. `None`: the file ends before its end.
pub(crate) fn next(input: &mut impl Read, at: u64) -> Result<Option<Record>, StateError> {
    let damaged = |what: &str| StateError::Damaged { at, what: what.to_owned() };
    let mut head = [0; 5];
    if fill(input, &mut head)? < head.len() {
        return Ok(None);
    }
    let length_bytes = [head[0], head[1], head[2], head[3]];
    let length = u32::from_le_bytes(length_bytes) as usize;
    if length > MAX_PAYLOAD {
        return Err(damaged("a record is longer than any can be"));
    }
    let kind = Kind::of(head[4]).ok_or_else(|| damaged("a record of no known kind"))?;
    let mut payload = vec![0; length];
    let mut digest = [0; DIGEST];
    if fill(input, &mut payload)? < length || fill(input, &mut digest)? < DIGEST {
        return Ok(None);
    }
    if digest_of(length_bytes, head[4], &payload) != digest {
        return Err(damaged("the checksum of a record does not fit"));
    }
    Ok(Some(Record { kind, payload, digest }))
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A change that is not committed yet.
enum Change {
    Upsert(Arc<PathBuf>, Place),
    Remove(PathBuf),
    Trust(Vec<u8>),
}

/// Reads a state file of `whose`.
///
/// # Errors
/// None of it is to be used.
pub(crate) fn read(input: &mut impl Read, whose: &Identity) -> Result<Contents, StateError> {
    let mut magic = [0; MAGIC.len()];
    if fill(input, &mut magic)? < magic.len() {
        return Err(StateError::Empty);
    }
    if &magic != MAGIC {
        let what = "it does not begin as a state file of this version does".to_owned();
        return Err(StateError::Damaged { at: 0, what });
    }
    let mut at = MAGIC.len() as u64;
    let mut contents = Contents::default();
    let mut pending: Vec<Change> = Vec::new();
    let mut chain = Digest::default();
    let mut records = 0_u32;
    let mut headed = false;
    while let Some(Record { kind, payload, digest }) = next(input, at)? {
        let damaged = |what: &str| StateError::Damaged { at, what: what.to_owned() };
        let length = payload.len() + AROUND;
        if kind != Kind::Commit {
            chain = chained(&chain, &digest);
            records = records.saturating_add(1);
        }
        if headed == (kind == Kind::Header) {
            return Err(damaged("the header is not the first record, or not the only one"));
        }
        match kind {
            Kind::Header => {
                header(&payload, whose, at)?;
                headed = true;
            }
            Kind::Upsert => {
                let resource = Resource::decode(&payload[..])
                    .map_err(|_| damaged("a record holds no object"))?;
                let key = resource.key.as_ref().ok_or_else(|| damaged("an object has no key"))?;
                let path = path_of(key).map_err(|e| damaged(&e))?;
                let place = Place {
                    offset: at,
                    length: u32::try_from(length).unwrap_or(u32::MAX),
                    bytes: u32::try_from(resource.json.len()).unwrap_or(u32::MAX),
                };
                pending.push(Change::Upsert(Arc::new(path), place));
            }
            Kind::Remove => {
                let key =
                    Key::decode(&payload[..]).map_err(|_| damaged("a record holds no key"))?;
                pending.push(Change::Remove(path_of(&key).map_err(|e| damaged(&e))?));
            }
            Kind::Trust if payload.len() > MAX_TRUST_BYTES => {
                return Err(damaged("a trust bundle is longer than any can be"));
            }
            Kind::Trust => pending.push(Change::Trust(payload)),
            Kind::Commit => {
                let time = payload.first_chunk().map(|b| u64::from_le_bytes(*b));
                let expected = time.map(|time| commit(time, records, &chain));
                let (Some(time), true) = (time, expected.as_deref() == Some(&payload[..])) else {
                    return Err(damaged("records are missing, or not in their order"));
                };
                contents.settle(pending.drain(..));
                contents.at = time;
                contents.end = at + length as u64;
                contents.chain = chain;
                records = 0;
            }
        }
        // What a file of this length can hold is bounded by itself; what is kept is not.
        if pending.len() + contents.objects.len() > 2 * MAX_OBJECTS {
            return Err(damaged("more objects than a node can hold"));
        }
        at += length as u64;
    }
    if contents.end == 0 {
        return Err(StateError::Empty);
    }
    contents.torn = at != contents.end || !pending.is_empty();
    Ok(contents)
}

fn header(payload: &[u8], whose: &Identity, at: u64) -> Result<(), StateError> {
    let found: Identity = serde_json::from_slice(payload)
        .map_err(|e| StateError::Damaged { at, what: format!("the header: {e}") })?;
    for (what, found, own) in
        [("node", &found.node, &whose.node), ("cluster", &found.cluster, &whose.cluster)]
    {
        if found != own {
            return Err(StateError::Foreign { what, found: found.clone() });
        }
    }
    if found.trim != whose.trim {
        return Err(StateError::Foreign { what: "version", found: found.trim.to_string() });
    }
    Ok(())
}

impl Contents {
    fn settle(&mut self, changes: impl Iterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Upsert(path, place) => {
                    self.objects.insert(path, place);
                }
                Change::Remove(path) => {
                    self.objects.remove(&path);
                }
                Change::Trust(trust) => self.trust = Some(trust),
            }
        }
    }

    /// Bytes of the records that count.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.objects.values().map(|place| u64::from(place.length)).sum()
    }
}
