//! Whether an object may be stored.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::Kind;
use fairlead_config::source::{Format, Problem, parse};
use serde_json::Value;
use serde_json::value::RawValue;

use super::review::Review;
use crate::status::plural;

/// The name of the object whose dry run is always refused: by that the controller knows that the
/// API server reaches it.
pub(super) const PROBE: &str = "fairlead-webhook-probe";
/// What is said about it.
pub(super) const PROBE_REFUSAL: &str = "the webhook is there";

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) field: String,
    message: String,
    allowed: Option<String>,
}

impl Fault {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into(), allowed: None }
    }

    /// What is wrong and what is allowed, without the field.
    pub(super) fn reason(&self) -> String {
        match &self.allowed {
            Some(allowed) => format!("{} ({allowed})", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason())
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self { field: problem.field, message: problem.message, allowed: problem.allowed }
    }
}

/// What the object is, for counting.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) resource: String,
}

/// The decision: denied if anything is in `denied`.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) subject: Option<Subject>,
    pub(super) denied: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

/// Decides.
pub(super) fn decide(review: &Review<'_>) -> Decision {
    let mut decision = Decision::default();
    // The configuration asks about nothing else; one that somebody widened must not lock anybody
    // out.
    if !matches!(review.operation.as_str(), "CREATE" | "UPDATE")
        || review.sub_resource.as_deref().is_some_and(|of| !of.is_empty())
    {
        return decision;
    }
    let of = &review.kind;
    let kind = Kind::from_name(&of.kind).filter(|kind| kind.group() == of.group && kind.is_istio());
    let Some(kind) = kind else {
        let message = format!("{} ({}) is not known here; it has no effect", of.kind, of.group);
        decision.warnings.push(Fault::new("", message));
        return decision;
    };
    let version = kind.versions().iter().copied().find(|v| **v == of.version).unwrap_or("other");
    decision.subject = Some(Subject { group: kind.group(), version, resource: plural(kind) });
    if review.dry_run && review.name.as_deref() == Some(PROBE) {
        decision.denied.push(Fault::new("", PROBE_REFUSAL));
        return decision;
    }
    let Some(object) = review.object else {
        decision.denied.push(Fault::new("", "the review holds no object"));
        return decision;
    };
    // Of an object of Istio's kinds nothing but the spec can be wrong.
    if is_a_touch(review, object) {
        return decision;
    }
    let named;
    let text = match with_a_name(object) {
        Some(text) => {
            named = text;
            named.as_str()
        }
        None => object.get(),
    };
    let parsed = parse(&Arc::new(PathBuf::new()), text, Format::Json);
    let (denied, warnings) = parsed.problems.into_iter().partition::<Vec<_>, _>(Problem::is_error);
    decision.denied = denied.into_iter().map(Fault::from).collect();
    decision.warnings = warnings.into_iter().map(Fault::from).collect();
    // Refused without a word would be refused for no reason.
    if decision.denied.is_empty() && (parsed.unreadable || !parsed.rejected.is_empty()) {
        decision.denied.push(Fault::new("", "the object cannot be read"));
    }
    decision
}

/// Whether the change leaves what is wanted as it was, or the object is going anyway.
fn is_a_touch(review: &Review<'_>, object: &RawValue) -> bool {
    let (Some(old), "UPDATE") = (review.old_object, review.operation.as_str()) else {
        return false;
    };
    let read = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
    let (Some(new), Some(old)) = (read(object), read(old)) else { return false };
    let going = new.get("metadata").and_then(|m| m.get("deletionTimestamp"));
    going.is_some_and(Value::is_string) || new.get("spec") == old.get("spec")
}

/// The object with a name, if it has none because the API server will make one.
fn with_a_name(object: &RawValue) -> Option<String> {
    if !object.get().contains("\"generateName\"") {
        return None;
    }
    let mut value: Value = serde_json::from_str(object.get()).ok()?;
    let metadata = value.get_mut("metadata")?.as_object_mut()?;
    if metadata.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let name = format!("{}x", metadata.get("generateName")?.as_str()?);
    metadata.insert("name".to_owned(), name.into());
    serde_json::to_string(&value).ok()
}
