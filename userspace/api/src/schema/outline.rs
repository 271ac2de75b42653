//! What a CustomResourceDefinition says, without its words: names, versions, and the type of every
//! field. By this our definitions are compared with Istio's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// The outline of a definition: a line of names for each set of versions that have the same fields
/// (`*` marks the stored one), and below it a line for each field, indented by its depth: its name
/// (`[]`: the items of a list, `{}`: the values of a map), its type, what its values may be, and which
/// of its own fields it needs.
#[must_use]
pub fn outline(definition: &Value) -> String {
    let spec = &definition["spec"];
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    for version in items(&spec["versions"]) {
        let mut fields = String::new();
        let schema = &version["schema"]["openAPIV3Schema"];
        properties(schema, 1, &mut fields);
        let served = if version["served"] == true { "" } else { "(not served)" };
        let stored = if version["storage"] == true { "*" } else { "" };
        let name = format!("{}{stored}{served}", text(&version["name"]));
        match blocks.iter_mut().find(|(same, _)| *same == fields) {
            Some((_, versions)) => versions.push(name),
            None => blocks.push((fields, vec![name])),
        }
    }
    let names = &spec["names"];
    let short: Vec<&str> = items(&names["shortNames"]).iter().map(text).collect();
    let mut all = String::new();
    for (fields, mut versions) in blocks {
        versions.sort();
        let (kind, plural, group) = (text(&names["kind"]), text(&names["plural"]), &spec["group"]);
        let of = format!("{plural}.{} {} {}", text(group), text(&spec["scope"]), short.join(","));
        let _ = write!(all, "{kind} {} {}\n{fields}", of.trim_end(), versions.join(" "));
    }
    all
}

/// The fields of an [`outline`] by their paths (`VirtualService spec.http[].timeout`), the names of
/// the kind among them under its own.
#[must_use]
pub fn outline_fields(outline: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let (mut kind, mut path) = ("", Vec::new());
    for line in outline.lines().filter(|line| !line.starts_with('#')) {
        let inner = line.trim_start_matches(' ');
        let depth = line.len() - inner.len();
        let (name, rest) = inner.split_once(' ').unwrap_or((inner, ""));
        path.truncate(depth.saturating_sub(1));
        if depth == 0 {
            kind = name;
        } else {
            path.push(name);
        }
        let key = format!("{kind} {}", path.join(".")).replace(".[]", "[]").replace(".{}", "{}");
        fields.insert(key.trim_end().to_owned(), rest.to_owned());
    }
    fields
}

fn properties(schema: &Value, depth: usize, into: &mut String) {
    let named = schema["properties"].as_object().into_iter().flatten();
    let named = named.map(|(name, field)| (name.as_str(), field));
    let values = Some(&schema["additionalProperties"]).filter(|values| values.is_object());
    let items = Some(&schema["items"]).filter(|items| items.is_object());
    let unnamed = values.map(|v| ("{}", v)).into_iter().chain(items.map(|i| ("[]", i)));
    let mut all: Vec<(&str, &Value)> = named.chain(unnamed).collect();
    all.sort_by_key(|(name, _)| *name);
    for (name, field) in all {
        let _ = writeln!(into, "{:depth$}{name} {}", "", kind(field));
        properties(field, depth + 1, into);
    }
}

/// The type of a field, and what its values may be.
fn kind(field: &Value) -> String {
    let mut all = Vec::new();
    if field["x-kubernetes-int-or-string"] == true {
        all.push("int-or-string".to_owned());
    }
    all.extend(field["type"].as_str().map(ToOwned::to_owned));
    if field["x-kubernetes-preserve-unknown-fields"] == true {
        all.push("and any other".to_owned());
    }
    all.extend(field["format"].as_str().map(ToOwned::to_owned));
    let mut list = |before: &str, between: &str, of: &Value| {
        let mut names: Vec<&str> = items(of).iter().map(text).collect();
        names.sort_unstable();
        if !names.is_empty() {
            all.push(format!("{before}{}", names.join(between)));
        }
    };
    list("", "|", &field["enum"]);
    list("needs ", ",", &field["required"]);
    all.join(" ")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
