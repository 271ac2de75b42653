//! JSON files to [`Node`] trees. JSON is almost YAML, but for tabs and escapes; `kubectl get -o
//! json` must be read without surprises.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::StreamDeserializer;
use serde_json::de::StrRead;

use super::tree::{Entries, Node, Value};
use super::yaml::SyntaxError;

/// The documents of a JSON text. serde_json bounds the depth (128) by itself.
pub(crate) struct Documents<'a>(StreamDeserializer<'a, StrRead<'a>, Tree>);

impl<'a> Documents<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(serde_json::Deserializer::from_str(text).into_iter())
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Node<'static>, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|result| match result {
            Ok(tree) => Ok(tree.0),
            Err(error) => Err(SyntaxError {
                line: u32::try_from(error.line()).unwrap_or(u32::MAX),
                message: format!("not valid JSON: {error}"),
                allowed: None,
                fatal: true,
            }),
        })
    }
}

struct Tree(Node<'static>);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(|value| Tree(Node { line: 0, value }))
    }
}

struct TreeVisitor;

fn plain<E>(text: impl Into<Cow<'static, str>>) -> Result<Value<'static>, E> {
    Ok(Value::Scalar { text: text.into(), plain: true })
}

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        plain("null")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        plain(if value { "true" } else { "false" })
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        plain(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        plain(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        plain(value.to_string())
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Value::Scalar { text: Cow::Owned(value.to_owned()), plain: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Tree(node)) = access.next_element()? {
            items.push(node);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut entries = Entries::default();
        while let Some((key, Tree(node))) = access.next_entry::<String, Tree>()? {
            if !entries.insert(Cow::Owned(key.clone()), node) {
                return Err(de::Error::custom(format_args!("the key {key:?} is there twice")));
            }
        }
        Ok(Value::Mapping(entries))
    }
}
