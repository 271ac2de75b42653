//! A parsed document, still untyped: what YAML and JSON have in common, with the line of each
//! node. Texts borrow from the file where the syntax allows it.

use std::borrow::Cow;
use std::collections::HashSet;

use super::path::{Path, Step};

/// Deepest nesting of a document. Kubernetes objects stay below 30.
pub(crate) const MAX_DEPTH: usize = 100;

/// A node and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    /// Line, counted from 1; 0 where it is not known (JSON).
    pub(crate) line: u32,
    /// What it is.
    pub(crate) value: Value<'a>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    /// A scalar; `plain` ones (no quotes) may be a number, a truth value or null.
    Scalar { text: Cow<'a, str>, plain: bool },
    /// A list.
    Sequence(Vec<Node<'a>>),
    /// An object; keys are unique.
    Mapping(Entries<'a>),
}

/// The entries of an object in the order in which they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries<'a> {
    list: Vec<(Cow<'a, str>, Node<'a>)>,
    /// All keys, once there are too many to look through.
    seen: HashSet<Cow<'a, str>>,
}

impl<'a> Entries<'a> {
    /// Up to here, looking through the list is quicker than hashing.
    const LINEAR: usize = 24;

    /// Adds an entry, unless the key is there already.
    pub(crate) fn insert(&mut self, key: Cow<'a, str>, node: Node<'a>) -> bool {
        if self.list.len() < Self::LINEAR {
            if self.list.iter().any(|(existing, _)| *existing == key) {
                return false;
            }
        } else {
            if self.seen.is_empty() {
                self.seen.extend(self.list.iter().map(|(existing, _)| existing.clone()));
            }
            if !self.seen.insert(key.clone()) {
                return false;
            }
        }
        self.list.push((key, node));
        true
    }

    /// The entries.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, (Cow<'a, str>, Node<'a>)> {
        self.list.iter()
    }
}

impl<'a> IntoIterator for Entries<'a> {
    type Item = (Cow<'a, str>, Node<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

/// What a plain scalar means (YAML 1.2 core schema).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Plain {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Unsigned(u64),
    /// A negative whole number.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text,
}

/// The meaning of a plain scalar.
pub(crate) fn resolve(text: &str) -> Plain {
    let Some(first) = text.bytes().next() else { return Plain::Null };
    match first {
        b'n' | b'N' | b'~' if matches!(text, "null" | "Null" | "NULL" | "~") => Plain::Null,
        b't' | b'T' if matches!(text, "true" | "True" | "TRUE") => Plain::Bool(true),
        b'f' | b'F' if matches!(text, "false" | "False" | "FALSE") => Plain::Bool(false),
        b'0'..=b'9' | b'+' | b'-' | b'.' => number(text),
        _ => Plain::Text,
    }
}

fn number(text: &str) -> Plain {
    let prefixed = |radix: u32| u64::from_str_radix(&text[2..], radix).ok();
    let whole = match text.as_bytes() {
        [b'0', b'x', b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..] => prefixed(16),
        [b'0', b'o', b'0'..=b'7', ..] => prefixed(8),
        _ => text.parse::<u64>().ok(),
    };
    if let Some(n) = whole {
        return Plain::Unsigned(n);
    }
    if let Ok(n) = text.parse::<i64>() {
        return Plain::Signed(n);
    }
    // Rust's own parser takes words such as "-inf"; YAML's numbers consist of these only.
    let numeric = |b: u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    if text.bytes().all(numeric)
        && let Ok(n) = text.parse::<f64>()
    {
        return Plain::Float(n);
    }
    Plain::Text
}

impl<'a> Node<'a> {
    /// Whether it is null.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if resolve(text) == Plain::Null)
    }

    /// The text of a scalar, whatever it means.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// The field `name`, which may be written in snake_case; absent if null.
    pub(crate) fn get(&self, name: &str) -> Option<&Node<'a>> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries
            .iter()
            .find(|(key, _)| key == name || camel(key).as_deref() == Some(name))
            .map(|(_, node)| node)
            .filter(|node| !node.is_null())
    }

    /// The items of a list; none if it is not one.
    pub(crate) fn items(&self) -> &[Node<'a>] {
        match &self.value {
            Value::Sequence(items) => items,
            Value::Scalar { .. } | Value::Mapping(_) => &[],
        }
    }

    /// The line of the deepest node on the path that exists.
    pub(crate) fn line_of(&self, path: &Path<'_>) -> Option<u32> {
        let mut node = self;
        for step in path.steps() {
            let next = match step {
                Step::Name(name) => node.get(name),
                Step::Index(index) => node.items().get(index),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        (node.line != 0).then_some(node.line)
    }
}

/// The camelCase form of a snake_case name; `None` if it is none.
pub(crate) fn camel(name: &str) -> Option<String> {
    if !name.contains('_') {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars() {
        for (text, meaning) in [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("null", Plain::Null),
            ("none", Plain::Text),
            ("true", Plain::Bool(true)),
            ("False", Plain::Bool(false)),
            ("yes", Plain::Text),
            ("80", Plain::Unsigned(80)),
            ("0x50", Plain::Unsigned(80)),
            ("0o17", Plain::Unsigned(15)),
            ("0x", Plain::Text),
            ("-3", Plain::Signed(-3)),
            ("1.5", Plain::Float(1.5)),
            ("1e3", Plain::Float(1000.0)),
            ("-inf", Plain::Text),
            ("1.2.3", Plain::Text),
            ("10.0.0.1", Plain::Text),
            ("5s", Plain::Text),
            ("-", Plain::Text),
            ("2026-01-01T00:00:00Z", Plain::Text),
        ] {
            assert_eq!(resolve(text), meaning, "{text:?}");
        }
    }

    #[test]
    fn snake_to_camel() {
        assert_eq!(camel("per_try_timeout").as_deref(), Some("perTryTimeout"));
        assert_eq!(camel("timeout"), None);
    }
}
