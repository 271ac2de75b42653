//! One object as the controller keeps it: its bytes as they go to nodes, and who has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::{Key, Rejection};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::facts::Facts;
use super::node_set::{NodeId, NodeSet};

/// Number of an object; used again when the object is gone everywhere.
pub(crate) type Slot = u32;

/// Bytes of the hash that makes a version.
const HASH: usize = 16;

/// An object, or one that is gone while nodes still hold it.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) key: ObjectKey,
    /// `None`: gone.
    pub(crate) content: Option<Content>,
    pub(crate) facts: Facts,
    /// The nodes that need it.
    pub(crate) wanted: NodeSet,
    /// The nodes that it has to be brought to, or taken from.
    pub(crate) dirty: NodeSet,
    /// The nodes that have some version of it.
    pub(crate) held: NodeSet,
    /// The nodes that took this version.
    pub(crate) taken: NodeSet,
    /// The nodes that asked for its address.
    pub(crate) looked: NodeSet,
    /// The nodes that refused this version.
    pub(crate) refusals: BTreeMap<NodeId, Arc<Rejection>>,
}

/// What nodes get.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// A `fairlead.config.v1.Resource`.
    pub(crate) resource: Bytes,
    /// The JSON in it.
    pub(crate) json: Bytes,
    /// Its version: equal for equal content, at every replica.
    pub(crate) version: Arc<str>,
    /// `metadata.generation`.
    pub(crate) generation: i64,
    /// Differs between all contents that this controller has had.
    pub(crate) sequence: u64,
}

impl Content {
    /// The content of an object. `uid` is part of the version: an object that was made anew is
    /// another one.
    pub(crate) fn new(key: &Key, uid: &str, json: &[u8], generation: i64) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(uid.as_bytes());
        context.update(&[0]);
        context.update(json);
        let hash = context.finish();
        let mut version = String::with_capacity(uid.len() + 1 + 2 * HASH);
        version.push_str(uid);
        version.push('/');
        for byte in &hash.as_ref()[..HASH] {
            for digit in [byte >> 4, byte & 15] {
                version.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        let head = fairlead_wire::config::Resource {
            key: Some(key.clone()),
            version: version.clone(),
            json: Vec::new(),
            generation,
        };
        let mut bytes = BytesMut::with_capacity(
            head.encoded_len() + key_len(3) + encoded_len_varint(json.len() as u64) + json.len(),
        );
        // The fields of a message may come in any order.
        head.encode_raw(&mut bytes);
        encode_key(3, WireType::LengthDelimited, &mut bytes);
        encode_varint(json.len() as u64, &mut bytes);
        let begin = bytes.len();
        bytes.extend_from_slice(json);
        let resource = bytes.freeze();
        let json = resource.slice(begin..);
        Self { resource, json, version: version.into(), generation, sequence: 0 }
    }

    /// The object's UID.
    pub(crate) fn uid(&self) -> &str {
        self.version.rsplit_once('/').map_or("", |(uid, _)| uid)
    }
}

impl Object {
    pub(crate) fn new(key: ObjectKey) -> Self {
        Self {
            key,
            content: None,
            facts: Facts::None,
            wanted: NodeSet::default(),
            dirty: NodeSet::default(),
            held: NodeSet::default(),
            taken: NodeSet::default(),
            looked: NodeSet::default(),
            refusals: BTreeMap::new(),
        }
    }

    /// Whether nobody knows of it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.content.is_none() && self.held.is_empty() && self.dirty.is_empty()
    }

    /// Forgets a node.
    pub(crate) fn forget(&mut self, node: NodeId) {
        for set in
            [&mut self.wanted, &mut self.dirty, &mut self.held, &mut self.taken, &mut self.looked]
        {
            set.remove(node);
        }
        self.refusals.remove(&node);
    }
}

/// What comes first when not all fits into one message: what forbids comes before the pods that
/// it is about.
pub(crate) fn priority(kind: Kind) -> u8 {
    match kind {
        Kind::ConfigMap => 0,
        Kind::Namespace => 1,
        kind if kind.is_security() => 2,
        Kind::Node => 3,
        Kind::Service => 5,
        Kind::EndpointSlice => 6,
        Kind::Pod => 7,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use fairlead_wire::config::Resource;

    use super::*;

    #[test]
    fn content_is_a_resource() {
        let key = Key {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "n".into(),
            name: "p".into(),
        };
        let content = Content::new(&key, "u", b"{}", 3);
        let resource = Resource::decode(content.resource.clone()).expect("a resource");
        assert_eq!((resource.key, resource.json.as_slice()), (Some(key.clone()), &b"{}"[..]));
        assert_eq!((resource.version.as_str(), resource.generation), (&*content.version, 3));
        assert_eq!(&content.json[..], b"{}");
        let again = Content::new(&key, "u", b"{}", 4);
        assert_eq!(again.version, content.version, "the same content");
        assert_ne!(Content::new(&key, "v", b"{}", 3).version, content.version);
        assert_ne!(Content::new(&key, "u", b"{ }", 3).version, content.version);
        assert!(content.version.starts_with("u/") && content.version.len() == 34);
    }
}
