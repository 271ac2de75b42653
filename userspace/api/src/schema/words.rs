//! The vocabulary of the attributes on types and fields: what `schemars` has no word for.
//!
//! Bounds of lists and maps are needed where a CEL rule stands inside: the API server multiplies
//! the cost of the rule with the greatest number of places that it can apply to.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::{ProtoDuration, StringMatch};

/// Key of CEL rules.
const RULES: &str = "x-kubernetes-validations";

/// More routes than an object of 1.5 MB (the bound of etcd) can hold: a bound for the cost of CEL
/// rules alone.
pub(crate) const MOST_ROUTES: u32 = 32_768;

/// Longest text of a duration: that of `parse_duration`.
const MOST_DURATION: usize = crate::value::MAX_DURATION_TEXT;

/// `{rule, message}` at the end of the rules.
fn push_rule(schema: &mut Schema, rule: &str, message: &str) {
    let value = json!({"rule": rule, "message": message});
    match schema.ensure_object().get_mut(RULES).and_then(Value::as_array_mut) {
        Some(rules) => rules.push(value),
        None => {
            schema.insert(RULES.to_owned(), json!([value]));
        }
    }
}

/// A CEL rule over the object, and what is said where it does not hold.
pub(crate) fn rule(rule: &'static str, message: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| push_rule(schema, rule, message)
}

/// The fields (separated by blanks) that must be there.
pub(crate) fn required(fields: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("required".to_owned(), fields.split(' ').collect::<Vec<_>>().into());
    }
}

/// At most one of these fields (a oneof of protobuf) may be there.
pub(crate) fn one_of(fields: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        let each = || fields.split(' ').map(|field| json!({"required": [field]}));
        let mut choices = vec![json!({"not": {"anyOf": each().collect::<Vec<_>>()}})];
        choices.extend(each());
        // A second oneof of the same object.
        if let Some(first) = schema.remove("oneOf") {
            schema.insert("allOf".to_owned(), json!([{"oneOf": first}, {"oneOf": choices}]));
        } else {
            schema.insert("oneOf".to_owned(), choices.into());
        }
    }
}

/// As [`one_of`], with a message of its own.
pub(crate) fn exclusive(fields: &'static str, message: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        let each = fields.split(' ').map(|field| format!("(has(self.{field}) ? 1 : 0)"));
        let rule = format!("{} <= 1", each.collect::<Vec<_>>().join(" + "));
        push_rule(schema, &rule, message);
    }
}

/// The field is known by a second name, which Istio's definitions have too.
pub(crate) fn alias(field: &'static str, other: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
            return;
        };
        if let Some(value) = fields.get(field).cloned() {
            fields.insert(other.to_owned(), value);
        }
    }
}

/// `null` is taken for absent.
pub(crate) fn nullable(schema: &mut Schema) {
    schema.insert("nullable".to_owned(), true.into());
}

/// Anything at all, as an object.
pub(crate) fn free(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A number that clients of JavaScript's precision write as text.
pub(crate) fn int_or_string(schema: &mut Schema) {
    for key in ["type", "format"] {
        schema.remove(key);
    }
    schema.insert("x-kubernetes-int-or-string".to_owned(), true.into());
    schema.insert("anyOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
}

/// 1 to 65535.
pub(crate) fn port(schema: &mut Schema) {
    schema.insert("minimum".to_owned(), 1.into());
    schema.insert("maximum".to_owned(), 65_535.into());
}

/// Most entries of a list.
pub(crate) fn max_items(most: u32) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("maxItems".to_owned(), most.into());
    }
}

/// Fewest entries of a map.
pub(crate) fn min_properties(fewest: u32) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("minProperties".to_owned(), fewest.into());
    }
}

/// The entries of the list are told apart by this field.
pub(crate) fn list_map(key: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
        schema.insert("x-kubernetes-list-map-keys".to_owned(), json!([key]));
    }
}

/// Labels of `matchLabels`: no wildcards.
pub(crate) fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 4096,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            RULES: [{"rule": "!self.contains('*')", "message": "wildcards do not work in labels"}],
        },
        RULES: [
            {"rule": "self.all(key, !key.contains('*'))", "message": "wildcards do not work in labels"},
            {"rule": "self.all(key, key.size() != 0)", "message": "the key of a label is empty"},
        ],
    })
}

/// Labels of networking's selectors: no wildcards in values.
pub(crate) fn selector_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            RULES: [{"rule": "!self.contains('*')", "message": "wildcards do not work in labels"}],
        },
    })
}

/// At most 256 labels or annotations.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {"type": "string"},
    })
}

/// Environment variables.
pub(crate) fn environment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 2048},
    })
}

/// Ports by name.
pub(crate) fn named_ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 65535},
        RULES: [{
            "rule": "self.all(key, size(key) < 63 && key.matches('^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$'))",
            "message": "the name of a port has letters, digits and '-', at most 62",
        }],
    })
}

/// Keys that are ports.
pub(crate) fn port_keys(schema: &mut Schema) {
    let rule = "self.all(key, 0 < int(key) && int(key) <= 65535)";
    push_rule(schema, rule, "a port is 1 to 65535");
}

/// Shares in percent, none of them 0.
pub(crate) fn shares(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 100},
    })
}

/// Texts of at most 64 bytes, as long as an address with its prefix.
pub(crate) fn short_texts(schema: &mut Schema) {
    schema.insert("items".to_owned(), json!({"type": "string", "maxLength": 64}));
}

/// Where a WebAssembly module is; an image may be named without `oci://`.
pub(crate) fn module_url(schema: &mut Schema) {
    let schemes = "['', 'http', 'https', 'file', 'oci']";
    let rule = format!(
        "isURL(self) ? (url(self).getScheme() in {schemes}) : (isURL('http://' + self) && \
         url('http://' + self).getScheme() in {schemes})"
    );
    push_rule(schema, &rule, "an http, https, file or oci URL is needed");
}

/// A duration that may be 0; by a pattern, as the cost of CEL rules is bounded for a kind as a
/// whole.
pub(crate) fn any_duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": MOST_DURATION,
        "pattern": r"^0$|^(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$",
    })
}

/// Durations are at least a millisecond unless a field says otherwise (`any_duration`).
impl JsonSchema for ProtoDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": MOST_DURATION,
            RULES: [{
                "rule": "duration(self) >= duration('1ms')",
                "message": "must be a duration of at least 1ms, such as 1.5s, 250ms or 1h",
            }],
        })
    }
}

impl JsonSchema for StringMatch {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StringMatch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = json_schema!({
            "type": "object",
            "properties": {
                "exact": {"type": "string", "description": "Equal to this text."},
                "prefix": {"type": "string", "description": "Begins with this text."},
                "regex": {
                    "type": "string",
                    "description": "The whole matches this RE2 expression.",
                    "maxLength": 1024,
                },
            },
        });
        one_of("exact prefix regex")(&mut schema);
        schema
    }
}
