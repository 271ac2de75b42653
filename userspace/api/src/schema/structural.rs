//! A JSON schema (draft 2020-12, as `schemars` writes it) made a structural schema of Kubernetes
//! (`apiextensions/v1`): no references, one type, nothing but what the API server knows.

use serde_json::{Map, Value};
use thiserror::Error;

/// Deepest nesting: far beyond any resource; ends what refers to itself.
const MAX_DEPTH: usize = 40;

/// Why a schema cannot be made structural.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SchemaError {
    /// A reference that leads nowhere.
    #[error("{0}: the reference leads nowhere")]
    Reference(String),
    /// Nested without end.
    #[error("{0}: nested too deep; a type that contains itself cannot be a structural schema")]
    Depth(String),
    /// Something for which Kubernetes has no form.
    #[error("{0}: {1} has no structural form")]
    Form(String, &'static str),
}

/// Makes a root schema structural.
///
/// # Errors
/// When something has no structural form; the path says where.
pub fn structural(root: &Value) -> Result<Value, SchemaError> {
    let definitions = root.get("$defs").and_then(Value::as_object).cloned().unwrap_or_default();
    Pass { definitions: &definitions }.schema(root, "$", 0)
}

struct Pass<'a> {
    definitions: &'a Map<String, Value>,
}

impl Pass<'_> {
    fn schema(&self, value: &Value, at: &str, depth: usize) -> Result<Value, SchemaError> {
        if depth > MAX_DEPTH {
            return Err(SchemaError::Depth(at.to_owned()));
        }
        let Some(object) = value.as_object() else {
            return Err(SchemaError::Form(at.to_owned(), "a schema that is no object"));
        };
        let mut schema = self.resolved(object, at)?;
        for gone in ["$schema", "$defs", "title", "default", "examples"] {
            schema.shift_remove(gone);
        }
        only_type(&mut schema);
        names(&mut schema, at)?;
        number(&mut schema);
        if let Some(text) = schema.get("description").and_then(Value::as_str) {
            let text = plain(text);
            schema.insert("description".to_owned(), text.into());
        }
        // Keys that are no text are text in JSON.
        if let Some(patterns) = schema.shift_remove("patternProperties") {
            let only =
                patterns.as_object().filter(|p| p.len() == 1).and_then(|p| p.values().next());
            let value =
                only.ok_or_else(|| SchemaError::Form(at.to_owned(), "several patternProperties"))?;
            schema.insert("additionalProperties".to_owned(), value.clone());
        }
        if schema.get("additionalProperties").is_some_and(Value::is_boolean) {
            return Err(SchemaError::Form(at.to_owned(), "a closed or open object"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key) {
                let inner = self.schema(inner, &format!("{at}.{key}"), depth + 1)?;
                schema.insert(key.to_owned(), inner);
            }
        }
        if let Some(Value::Object(fields)) = schema.get_mut("properties") {
            for (name, field) in fields.iter_mut() {
                *field = self.schema(field, &format!("{at}.{name}"), depth + 1)?;
            }
        }
        Ok(Value::Object(sorted(schema)))
    }

    /// What the schema says with its reference put in; what stands beside the reference counts.
    fn resolved(
        &self,
        object: &Map<String, Value>,
        at: &str,
    ) -> Result<Map<String, Value>, SchemaError> {
        let mut own = object.clone();
        let mut under = None;
        if let Some(name) = own.shift_remove("$ref") {
            under = Some(self.definition(&name, at)?);
        } else if let Some(choice) = optional(&own) {
            under = Some(match choice.get("$ref") {
                Some(name) => self.definition(name, at)?,
                None => choice,
            });
            own.shift_remove("anyOf");
        }
        let Some(mut schema) = under else { return Ok(own) };
        schema.extend(own);
        Ok(schema)
    }

    fn definition(&self, name: &Value, at: &str) -> Result<Map<String, Value>, SchemaError> {
        name.as_str()
            .and_then(|name| name.strip_prefix("#/$defs/"))
            .and_then(|name| self.definitions.get(name)?.as_object().cloned())
            .ok_or_else(|| SchemaError::Reference(at.to_owned()))
    }
}

/// `T` of `anyOf: [T, null]`.
fn optional(object: &Map<String, Value>) -> Option<Map<String, Value>> {
    match object.get("anyOf")?.as_array()?.as_slice() {
        [Value::Object(choice), Value::Object(null)]
            if null.get("type").is_some_and(|t| t == "null") =>
        {
            Some(choice.clone())
        }
        _ => None,
    }
}

/// `[T, "null"]` is `T`: the API server has a word of its own for null, which fields set.
fn only_type(schema: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = schema.get("type") else { return };
    if let [only, null] = types.as_slice()
        && null == "null"
    {
        let only = only.clone();
        schema.insert("type".to_owned(), only);
    }
}

/// An enumeration: its names, each of which `schemars` writes with its description; what they mean
/// goes into the description of the whole.
fn names(schema: &mut Map<String, Value>, at: &str) -> Result<(), SchemaError> {
    let (mut all, mut meaning) = (Vec::new(), String::new());
    let Some(Value::Array(choices)) = schema.get("oneOf") else {
        return Ok(());
    };
    for choice in choices {
        match (choice.get("const"), choice.get("enum")) {
            (Some(name), _) => {
                let said = choice.get("description").and_then(Value::as_str).unwrap_or_default();
                meaning.extend([" ", name.as_str().unwrap_or_default(), ": ", said]);
                all.push(name.clone());
            }
            (None, Some(Value::Array(names))) => all.extend(names.iter().cloned()),
            // A oneof of fields stays as it is.
            _ if choice.get("required").is_some() || choice.get("not").is_some() => return Ok(()),
            _ => return Err(SchemaError::Form(at.to_owned(), "oneOf of schemas")),
        }
    }
    schema.shift_remove("oneOf");
    schema.insert("type".to_owned(), "string".into());
    schema.insert("enum".to_owned(), all.into());
    if let Some(Value::String(text)) = schema.get_mut("description") {
        text.push_str(&meaning);
    }
    Ok(())
}

/// Numbers: formats of Rust that OpenAPI does not have become bounds.
fn number(schema: &mut Map<String, Value>) {
    let most: Option<u64> = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => Some(u64::from(u8::MAX)),
        Some("uint16") => Some(u64::from(u16::MAX)),
        Some("uint32") => Some(u64::from(u32::MAX)),
        Some("uint64" | "uint") => None,
        _ => return,
    };
    schema.shift_remove("format");
    if let Some(most) = most
        && schema.get("maximum").is_none()
    {
        schema.insert("maximum".to_owned(), most.into());
    }
}

/// A comment as plain text on one line.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.replace("[`", "`").replace("`]", "`")
}

/// Keys in one order, so that the files do not depend on how the types are written; fields keep
/// the order of the alphabet too.
fn sorted(schema: Map<String, Value>) -> Map<String, Value> {
    let mut entries: Vec<_> = schema.into_iter().collect();
    for (key, value) in &mut entries {
        if key == "properties"
            && let Value::Object(fields) = value
        {
            let mut fields: Vec<_> = std::mem::take(fields).into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            *value = Value::Object(fields.into_iter().collect());
        }
    }
    // What a reader looks for first.
    let rank = |key: &str| match key {
        "description" => 0,
        "type" => 1,
        "properties" | "items" | "additionalProperties" => 3,
        _ => 2,
    };
    entries.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
    entries.into_iter().collect()
}
