//! [`Node`] trees to typed resources: a serde deserializer that knows where it is, collects the
//! fields that nobody knows, and takes protobuf-JSON's habits (snake_case names, null as unset,
//! numbers in quotes).

use std::cell::RefCell;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::mismatch::Mismatch;
use super::path::Path;
use super::suggest::suggest;
use super::tree::{Node, Plain, Value, camel, resolve};

/// Most unknown fields that are told of one object.
const MAX_UNKNOWN: usize = 50;

/// A field that the type does not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) path: String,
    pub(crate) line: u32,
    pub(crate) suggestion: Option<&'static str>,
}

/// Reads a typed value at `path` of a document. With `strict`, fields that the type does not have
/// are added to `unknown`.
pub(crate) fn from_node<'de, T: Deserialize<'de>>(
    node: &'de Node<'_>,
    path: &Path<'_>,
    strict: bool,
    unknown: &RefCell<Vec<Unknown>>,
) -> Result<T, Mismatch> {
    let de = De { node, path, strict, unknown };
    de.placed(T::deserialize(de))
}

/// A node to be read, and what is known about the place.
#[derive(Clone, Copy)]
struct De<'de, 'a, 'c> {
    node: &'de Node<'a>,
    path: &'c Path<'c>,
    strict: bool,
    unknown: &'c RefCell<Vec<Unknown>>,
}

impl<'de, 'a> De<'de, 'a, '_> {
    /// Gives an error its place, unless it has one from further in.
    fn placed<T>(&self, result: Result<T, Mismatch>) -> Result<T, Mismatch> {
        result.map_err(|mut error| {
            error.parts_mut().place.get_or_insert_with(|| (self.path.to_string(), self.node.line));
            error
        })
    }

    /// Tells of a field that the type does not have.
    fn report(&self, key: &str, line: u32, fields: &[&'static str]) {
        let mut unknown = self.unknown.borrow_mut();
        if unknown.len() < MAX_UNKNOWN {
            let path = self.path.field(key).to_string();
            unknown.push(Unknown { path, line, suggestion: suggest(key, fields) });
        }
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match &self.node.value {
            Value::Sequence(_) => Unexpected::Seq,
            Value::Mapping(_) => Unexpected::Map,
            Value::Scalar { text, plain: false } => Unexpected::Str(text),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Null => Unexpected::Other("null"),
                Plain::Bool(value) => Unexpected::Bool(value),
                Plain::Unsigned(value) => Unexpected::Unsigned(value),
                Plain::Signed(value) => Unexpected::Signed(value),
                Plain::Float(value) => Unexpected::Float(value),
                Plain::Text => Unexpected::Str(text),
            },
        }
    }

    fn mismatch(&self, expected: &str) -> Mismatch {
        de::Error::invalid_type(self.unexpected(), &expected)
    }

    fn text(&self, expected: &dyn Expected) -> Result<&'de str, Mismatch> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => Ok(text),
            Value::Scalar { text, plain: true } if resolve(text) == Plain::Text => Ok(text),
            Value::Scalar { .. } => {
                let mut error: Mismatch = de::Error::invalid_type(self.unexpected(), expected);
                if let Some(allowed) = &mut error.parts_mut().allowed
                    && allowed == "a string"
                {
                    allowed.push_str("; put it in quotes to make it text");
                }
                Err(error)
            }
            _ => Err(de::Error::invalid_type(self.unexpected(), expected)),
        }
    }

    /// A number; protobuf-JSON takes it in quotes too.
    fn number(&self) -> Option<Plain> {
        match &self.node.value {
            Value::Scalar { text, .. } => Some(resolve(text)),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }
}

macro_rules! whole_number {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            let value = match self.number() {
                Some(Plain::Unsigned(n)) => <$type>::try_from(n).ok(),
                Some(Plain::Signed(n)) => <$type>::try_from(n).ok(),
                _ => None,
            };
            match value {
                Some(value) => visitor.$visit(value),
                None => Err(self.mismatch(&format!(
                    "a whole number from {} to {}", <$type>::MIN, <$type>::MAX
                ))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for De<'de, '_, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Unsigned(value) => visitor.visit_u64(value),
                Plain::Signed(value) => visitor.visit_i64(value),
                Plain::Float(value) => visitor.visit_f64(value),
                Plain::Text => visitor.visit_borrowed_str(text),
            },
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        // YAML 1.1's words are taken as well: kubectl does.
        let value = match &self.node.value {
            Value::Scalar { text, plain: true } => match text.as_ref() {
                "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
                "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
                    Some(false)
                }
                _ => None,
            },
            _ => None,
        };
        value.map_or_else(|| Err(self.mismatch("true or false")), |v| visitor.visit_bool(v))
    }

    whole_number! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_f64(visitor)
    }

    #[expect(clippy::cast_precision_loss, reason = "the written number is the nearest double")]
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.number() {
            Some(Plain::Unsigned(n)) => visitor.visit_f64(n as f64),
            Some(Plain::Signed(n)) => visitor.visit_f64(n as f64),
            Some(Plain::Float(n)) => visitor.visit_f64(n),
            _ => Err(self.mismatch("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let text = self.text(&visitor)?;
        visitor.visit_borrowed_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Sequence(items) => visitor.visit_seq(Items { de: self, items, index: 0 }),
            _ => Err(self.mismatch("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Mapping(entries) => {
                visitor.visit_map(Entries { de: self, entries: entries.iter(), value: None })
            }
            _ => Err(self.mismatch("an object")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Mapping(entries) => {
                visitor.visit_map(Fields { de: self, entries: entries.iter(), fields, value: None })
            }
            _ => Err(self.mismatch("an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let text = self.text(&"one of its names")?;
        visitor.visit_enum(Variant(text))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple tuple_struct identifier }
}

/// The items of a list.
struct Items<'de, 'a, 'c> {
    de: De<'de, 'a, 'c>,
    items: &'de [Node<'a>],
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de, '_, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mismatch> {
        let Some(node) = self.items.get(self.index) else { return Ok(None) };
        let path = self.de.path.index(self.index);
        self.index += 1;
        let de = De { node, path: &path, ..self.de };
        de.placed(seed.deserialize(de)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.index)
    }
}

type EntryIter<'de, 'a> = std::slice::Iter<'de, (std::borrow::Cow<'a, str>, Node<'a>)>;

/// The entries of a map whose keys people choose.
struct Entries<'de, 'a, 'c> {
    de: De<'de, 'a, 'c>,
    entries: EntryIter<'de, 'a>,
    value: Option<(&'de str, &'de Node<'a>)>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mismatch> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, node));
        // Keys are read like quoted scalars: as text, or as a number where one is needed.
        let value = Value::Scalar { text: std::borrow::Cow::Borrowed(key.as_ref()), plain: false };
        let key_node = Node { line: node.line, value };
        let path = self.de.path.key(key);
        let de = KeyDe { text: key, whole: De { node: &key_node, path: &path, ..self.de } };
        de.whole.placed(seed.deserialize(&de)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (key, node) = self.value.take().ok_or_else(|| de::Error::custom("value before key"))?;
        let path = self.de.path.key(key);
        let de = De { node, path: &path, ..self.de };
        de.placed(seed.deserialize(de))
    }
}

/// A key of a map.
struct KeyDe<'de, 'k, 'c> {
    text: &'de str,
    whole: De<'k, 'k, 'c>,
}

impl<'de> Deserializer<'de> for &KeyDe<'de, '_, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_borrowed_str(self.text)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.text.parse() {
            Ok(value) => visitor.visit_u16(value),
            Err(_) => Err(self.whole.mismatch("a whole number from 0 to 65535")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The fields of an object.
struct Fields<'de, 'a, 'c> {
    de: De<'de, 'a, 'c>,
    entries: EntryIter<'de, 'a>,
    fields: &'static [&'static str],
    value: Option<(&'static str, &'de Node<'a>)>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mismatch> {
        let (de, fields) = (self.de, self.fields);
        for (key, node) in self.entries.by_ref() {
            let find = |name: &str| fields.iter().copied().find(|field| *field == name);
            let Some(name) = find(key).or_else(|| find(&camel(key)?)) else {
                // What belongs to the envelope of every Kubernetes object is known at the top.
                let envelope = matches!(de.path, Path::Root)
                    && matches!(key.as_ref(), "apiVersion" | "kind" | "metadata" | "status");
                if de.strict && !envelope {
                    de.report(key, node.line, fields);
                }
                continue;
            };
            // protobuf-JSON: null is unset.
            if node.is_null() {
                continue;
            }
            self.value = Some((name, node));
            let name: StrDeserializer<'_, Mismatch> = name.into_deserializer();
            return seed.deserialize(name).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (name, node) =
            self.value.take().ok_or_else(|| de::Error::custom("value before key"))?;
        let path = self.de.path.field(name);
        // Metadata belongs to Kubernetes, which adds fields as it likes.
        let strict = self.de.strict && !(name == "metadata" && matches!(self.de.path, Path::Root));
        let de = De { node, path: &path, strict, ..self.de };
        de.placed(seed.deserialize(de))
    }
}

/// A name of an enumeration.
struct Variant<'de>(&'de str);

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Mismatch;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), Mismatch> {
        let name: StrDeserializer<'_, Mismatch> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Mismatch> {
        Err(de::Error::custom("a name alone is needed here"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("a name alone is needed here"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("a name alone is needed here"))
    }
}
