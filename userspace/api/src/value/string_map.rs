//! Texts by names: labels, annotations and the like.

use std::fmt;
use std::ops::Index;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Labels, annotations and other string maps, ordered so that equal maps compare and print alike.
/// Most have an entry or two, and there are as many as there are objects: so they take no more
/// room than what is in them.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StringMap(Box<[(String, String)]>);

impl StringMap {
    /// Without an entry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(own, _)| own.as_str().cmp(key))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&String> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }

    /// Sets the value of a key; returns what it was.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                let mut entries = std::mem::take(&mut self.0).into_vec();
                entries.insert(at, (key, value));
                self.0 = entries.into();
                None
            }
        }
    }

    /// The entries in order of keys.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(key, _)| key)
    }
}

/// The entries of a [`StringMap`].
#[derive(Clone, Debug)]
pub struct Iter<'a>(std::slice::Iter<'a, (String, String)>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a String, &'a String);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> IntoIterator for &'a StringMap {
    type Item = (&'a String, &'a String);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for StringMap {
    type Item = (String, String);
    type IntoIter = std::vec::IntoIter<(String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl FromIterator<(String, String)> for StringMap {
    /// Of several values of a key the last counts.
    fn from_iter<T: IntoIterator<Item = (String, String)>>(entries: T) -> Self {
        let mut entries: Vec<(String, String)> = entries.into_iter().collect();
        // The last comes first, and the first of equals stays.
        entries.reverse();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(a, _), (b, _)| a == b);
        Self(entries.into())
    }
}

impl<const N: usize> From<[(String, String); N]> for StringMap {
    fn from(entries: [(String, String); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl Index<&str> for StringMap {
    type Output = String;

    /// # Panics
    /// There is no such key.
    fn index(&self, key: &str) -> &String {
        match self.find(key) {
            Ok(at) => &self.0[at].1,
            Err(_) => panic!("no {key:?}"),
        }
    }
}

impl fmt::Debug for StringMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = StringMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringMap, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries.into_iter().collect())
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for StringMap {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StringMap".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        std::collections::BTreeMap::<String, String>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_any_map() {
        let read = |json: &str| -> StringMap { serde_json::from_str(json).unwrap() };
        let mut map = read(r#"{"b": "2", "a": "1", "b": "3"}"#);
        assert_eq!(format!("{map:?}"), r#"{"a": "1", "b": "3"}"#);
        assert_eq!((map.get("a").map(String::as_str), map.get("c")), (Some("1"), None));
        assert_eq!(map.insert("a".into(), "0".into()), Some("1".into()));
        assert_eq!(map.insert("aa".into(), "x".into()), None);
        assert_eq!((map.len(), map["aa"].as_str(), map.contains_key("b")), (3, "x", true));
        assert_eq!(map, read(r#"{"aa": "x", "a": "0", "b": "3"}"#));
        assert!(map.keys().eq(["a", "aa", "b"]));
        assert!(StringMap::new().is_empty() && read("{}") == StringMap::default());
        assert!(serde_json::from_str::<StringMap>("[]").is_err());
        let pairs: Vec<_> = map.clone().into_iter().collect();
        assert_eq!(map, pairs.into_iter().rev().collect());
    }
}
