//! From an object and a field back to the line in its file, for problems that are only found when
//! the file's text has gone: those of the compiler.

use fairlead_api::ObjectKey;

use super::problem::ObjectRef;
use super::tree::Node;
use super::{json, yaml};

/// Where in a file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The document, counted from 1.
    pub document: usize,
    /// The line, counted from 1, where it is known.
    pub line: Option<u32>,
}

/// Finds fields of objects in the text of a file; the result has an entry for each of `fields`.
/// Of a field that is not there, the nearest one above it is found.
#[must_use]
pub fn locate(
    text: &str,
    format: super::Format,
    fields: &[(&ObjectKey, &str)],
) -> Vec<Option<Location>> {
    let mut found = vec![None; fields.len()];
    match format {
        super::Format::Yaml => search(yaml::Documents::new(text), fields, &mut found),
        super::Format::Json => search(json::Documents::new(text), fields, &mut found),
    }
    found
}

fn search<'a, E>(
    documents: impl Iterator<Item = Result<Node<'a>, E>>,
    fields: &[(&ObjectKey, &str)],
    found: &mut [Option<Location>],
) {
    for (index, document) in documents.enumerate() {
        let Ok(node) = document else { continue };
        let objects = match node.get("items") {
            Some(items) => items.items(),
            None => std::slice::from_ref(&node),
        };
        for object in objects {
            let key = key_of(object, &node);
            for (place, (wanted, field)) in found.iter_mut().zip(fields) {
                if place.is_none() && key.as_ref() == Some(wanted) {
                    let line = descend(object, field).line;
                    let line = (line != 0).then_some(line);
                    *place = Some(Location { document: index + 1, line });
                }
            }
        }
    }
}

fn key_of(object: &Node<'_>, list: &Node<'_>) -> Option<ObjectKey> {
    let text =
        |node: &Node<'_>, name: &str| node.get(name).and_then(Node::as_str).map(str::to_owned);
    let kind = text(object, "kind")
        .or_else(|| Some(text(list, "kind")?.strip_suffix("List")?.to_owned()))?;
    let metadata = object.get("metadata")?;
    let name = text(metadata, "name")?;
    let namespace = text(metadata, "namespace").unwrap_or_default();
    let mut key = ObjectRef { kind, namespace, name }.key()?;
    if !key.kind.is_namespaced() {
        key.namespace = "".into();
    } else if key.namespace.is_empty() {
        key.namespace = "default".into();
    }
    Some(key)
}

/// Follows a written path such as `spec.http[0].headers[end-user]` as far as it leads.
fn descend<'n, 'a>(object: &'n Node<'a>, field: &str) -> &'n Node<'a> {
    let mut node = object;
    let mut rest = field;
    while !rest.is_empty() {
        let next = if let Some(bracket) = rest.strip_prefix('[') {
            let Some((inside, after)) = bracket.split_once(']') else { return node };
            rest = after;
            match (node.items(), inside.parse::<usize>()) {
                ([], _) | (_, Err(_)) => node.get(inside),
                (items, Ok(index)) => items.get(index),
            }
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            rest = &name[end..];
            if end == 0 {
                return node;
            }
            node.get(&name[..end])
        };
        match next {
            Some(next) => node = next,
            None => return node,
        }
    }
    node
}
