//! What is said of an object: conditions from its own text and from the nodes' verdicts.

use std::path::PathBuf;
use std::sync::Arc;

use fairlead_config::source::{Effect, Format, Problem, parse};
use fairlead_wire::config::Rejection;
use serde_json::{Map, Value, json};

use crate::scope::Verdict;

/// Characters of the longest message.
const MAX_MESSAGE: usize = 1024;
/// Problems that a message lists; the others are counted.
const MAX_LISTED: usize = 4;
/// Nodes that a message names.
const MAX_NODES: usize = 4;
/// Characters that each of them may need for its reason, so that all of them have room.
const MAX_REASON: usize = 210;
/// Validation messages of a status.
const MAX_VALIDATION: usize = 16;

/// The conditions that are ours.
pub(super) const ACCEPTED: &str = "Accepted";
pub(super) const RECONCILED: &str = "Reconciled";
pub(super) const ENFORCED: &str = "Enforced";

/// One condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: &'static str, message: &str) -> Self {
        let message = match message.char_indices().nth(MAX_MESSAGE) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message.to_owned(),
        };
        Self { kind, status, reason, message }
    }

    /// Whether a person has to mend something.
    pub(super) fn is_fault(&self) -> bool {
        self.status == "False" && self.kind != ENFORCED
    }

    /// Whether a person has not been told this fault of the object in this generation: it has come
    /// up, or did not go by what was done about it. That other nodes say the same is no news.
    pub(super) fn is_news(&self, generation: i64, existing: Option<&Value>) -> bool {
        let existing = existing.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let before = existing.iter().find(|c| c.get("type") == Some(&self.kind.into()));
        !before.is_some_and(|before| {
            before.get("status") == Some(&self.status.into())
                && before.get("reason") == Some(&self.reason.into())
                && same_value(before.get("observedGeneration"), &generation.into())
        })
    }
}

/// All that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) generation: i64,
    pub(super) conditions: [Condition; 3],
    pub(super) validation: Vec<Value>,
}

impl Outcome {
    /// Whether both say the same but for how many nodes there are.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let [accepted, reconciled, enforced] = &self.conditions;
        let [other_accepted, other_reconciled, other_enforced] = &other.conditions;
        self.generation == other.generation
            && (accepted, enforced) == (other_accepted, other_enforced)
            && (reconciled.status, reconciled.reason)
                == (other_reconciled.status, other_reconciled.reason)
            && reconciled.status == "True"
    }
}

/// What is to be said of an object.
pub(super) fn outcome(verdict: &Verdict) -> Outcome {
    let (accepted, enforced, validation) = checked(verdict);
    Outcome {
        generation: verdict.generation,
        conditions: [accepted, reconciled(verdict), enforced],
        validation,
    }
}

/// What the object's own text shows.
fn checked(verdict: &Verdict) -> (Condition, Condition, Vec<Value>) {
    let Ok(text) = std::str::from_utf8(&verdict.json) else {
        let accepted = Condition::new(ACCEPTED, "False", "Invalid", "not text");
        return (accepted, Condition::new(ENFORCED, "False", "Invalid", "not text"), Vec::new());
    };
    let parsed = parse(&Arc::new(PathBuf::new()), text, Format::Json);
    let (errors, warnings): (Vec<_>, Vec<_>) =
        parsed.problems.iter().partition(|problem| problem.is_error());
    let (doubtful, mut idle): (Vec<&Problem>, Vec<&Problem>) =
        warnings.iter().partition(|problem| problem.effect.is_full());
    // The worst first.
    idle.sort_by_key(|problem| std::cmp::Reverse(problem.effect));
    let validation = errors
        .iter()
        .map(|_| validation("SchemaValidationError", "IST0106", "ERROR"))
        .chain(idle.iter().map(|problem| match problem.effect {
            Effect::Refused => validation("TrafficRefused", "FLD0003", "WARNING"),
            _ => validation("FieldNotEnforced", "FLD0001", "WARNING"),
        }))
        .chain(doubtful.iter().map(|_| validation("DoubtfulField", "FLD0002", "WARNING")))
        .take(MAX_VALIDATION)
        .collect();
    let refused = !errors.is_empty() || parsed.unreadable || !parsed.rejected.is_empty();
    if refused {
        let unsupported =
            !errors.is_empty() && errors.iter().all(|problem| !problem.effect.is_full());
        let reason = if unsupported { "NotSupported" } else { "Invalid" };
        let message =
            if errors.is_empty() { "it cannot be read".to_owned() } else { list(&errors) };
        let accepted = Condition::new(ACCEPTED, "False", reason, &message);
        return (accepted, Condition::new(ENFORCED, "False", reason, &message), validation);
    }
    let accepted = match doubtful.as_slice() {
        [] => Condition::new(ACCEPTED, "True", "Valid", "valid"),
        some => Condition::new(ACCEPTED, "True", "ValidWithWarnings", &list(some)),
    };
    (accepted, enforced(verdict, &idle), validation)
}

/// Whether all that it says has an effect; `idle` is what has not, the worst first.
fn enforced(verdict: &Verdict, idle: &[&Problem]) -> Condition {
    let reason = match idle.first().map(|problem| problem.effect) {
        Some(Effect::Refused) => "RefusesTraffic",
        Some(Effect::NotEnforced) => "NotEnforcedYet",
        Some(_) => "PartlyEnforced",
        None if verdict.refused > 0 => {
            return Condition::new(ENFORCED, "False", "Refused", "not by the nodes that refuse it");
        }
        None => {
            let text = match (verdict.interested, verdict.behind) {
                (0, 0) => "all of it has an effect where a node needs it; none does now",
                _ => "all of it has an effect",
            };
            return Condition::new(ENFORCED, "True", "Enforced", text);
        }
    };
    Condition::new(ENFORCED, "False", reason, &list(idle))
}

/// Istio's AnalysisMessageBase.
fn validation(name: &str, code: &str, level: &str) -> Value {
    json!({"type": {"name": name, "code": code}, "level": level})
}

fn list(problems: &[&Problem]) -> String {
    let mut text = problems
        .iter()
        .take(MAX_LISTED)
        .map(|problem| fault(&problem.field, &problem.message, problem.allowed.as_deref()))
        .collect::<Vec<_>>()
        .join("; ");
    if problems.len() > MAX_LISTED {
        text.push_str(&format!("; and {} more", problems.len() - MAX_LISTED));
    }
    text
}

fn fault(field: &str, message: &str, allowed: Option<&str>) -> String {
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    match allowed.filter(|allowed| !allowed.is_empty()) {
        Some(allowed) => format!("{field}{message} ({allowed})"),
        None => format!("{field}{message}"),
    }
}

/// What the nodes made of it.
fn reconciled(verdict: &Verdict) -> Condition {
    let Verdict { interested, took, refused, rejections, waiting, behind, .. } = verdict;
    let of = |n: &usize| {
        format!("{n} of {interested} {}", if *interested == 1 { "node" } else { "nodes" })
    };
    if *refused > 0 {
        let mut text = format!("refused by {}", of(refused));
        for (node, rejection) in rejections.iter().take(MAX_NODES) {
            text.push_str(&format!("; {node}: {}", refusal(rejection)));
        }
        if *refused > MAX_NODES {
            text.push_str(&format!("; and {} more", refused - MAX_NODES));
        }
        return Condition::new(RECONCILED, "False", "Refused", &text);
    }
    let silent = silent(waiting, interested.saturating_sub(*took));
    if *behind > 0 {
        let mut text = String::new();
        if *interested > 0 {
            text = format!("taken by {}{silent}; ", of(took));
        }
        text.push_str(&match behind {
            1 => "a replica of the controller has not told of its nodes yet".to_owned(),
            _ => format!("{behind} replicas of the controller have not told of their nodes yet"),
        });
        return Condition::new(RECONCILED, "Unknown", "Pending", &text);
    }
    if *interested == 0 {
        let text = "no connected node needs it";
        return Condition::new(RECONCILED, "True", "NoNodeNeedsIt", text);
    }
    if took < interested {
        let text = format!("taken by {}{silent}", of(took));
        return Condition::new(RECONCILED, "Unknown", "Pending", &text);
    }
    Condition::new(RECONCILED, "True", "Reconciled", &format!("taken by {}", of(took)))
}

/// The nodes that have not answered, some of them by name.
fn silent(waiting: &[Arc<str>], count: usize) -> String {
    let named = &waiting[..waiting.len().min(MAX_NODES)];
    if named.is_empty() {
        return String::new();
    }
    match count.saturating_sub(named.len()) {
        0 => format!("; no answer from {}", named.join(", ")),
        more => format!("; no answer from {} and {more} more", named.join(", ")),
    }
}

fn refusal(rejection: &Rejection) -> String {
    let mut text = match rejection.faults.first() {
        Some(first) => fault(&first.field, &first.message, Some(&first.allowed)),
        None => "no reason given".to_owned(),
    };
    if let Some((end, _)) = text.char_indices().nth(MAX_REASON) {
        text.truncate(end);
        text.push('…');
    }
    let more = rejection.faults.len().saturating_sub(1) as u64 + u64::from(rejection.more);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    if rejection.last_good {
        text.push_str("; its last good version is in force");
    }
    text
}

/// The conditions as they are to be written, and which of ours differ from those that are there.
pub(super) fn merged(
    outcome: &Outcome,
    existing: Option<&Value>,
    now: &str,
) -> (Vec<Value>, Vec<&'static str>) {
    let existing = existing.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut changed = Vec::new();
    let conditions = outcome
        .conditions
        .iter()
        .map(|ours| {
            let before = existing.iter().find(|c| c.get("type") == Some(&ours.kind.into()));
            let text = |key: &str| before.and_then(|b| b.get(key)).and_then(Value::as_str);
            let same_status = text("status") == Some(ours.status);
            let since = text("lastTransitionTime").filter(|_| same_status).unwrap_or(now);
            let mut condition = Map::new();
            condition.insert("type".to_owned(), ours.kind.into());
            condition.insert("status".to_owned(), ours.status.into());
            condition.insert("reason".to_owned(), ours.reason.into());
            condition.insert("message".to_owned(), ours.message.as_str().into());
            condition.insert("lastTransitionTime".to_owned(), since.into());
            condition.insert("observedGeneration".to_owned(), outcome.generation.into());
            let same = before.is_some_and(|before| {
                condition.iter().all(|(key, value)| same_value(before.get(key), value))
            });
            if !same {
                changed.push(ours.kind);
            }
            Value::Object(condition)
        })
        .collect();
    (conditions, changed)
}

/// Generations are numbers or, in protobuf's JSON, text.
fn same_value(there: Option<&Value>, ours: &Value) -> bool {
    match (there, ours) {
        (Some(Value::String(there)), Value::Number(ours)) => *there == ours.to_string(),
        (there, ours) => there == Some(ours),
    }
}

/// Conditions of others that a list without keys would lose if we wrote only ours (Istio's own
/// CRDs have such a list; ours are merged by `type`).
pub(super) fn others(existing: Option<&Value>) -> Vec<Value> {
    let ours = [ACCEPTED, RECONCILED, ENFORCED];
    existing
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|c| c.get("type").and_then(Value::as_str).is_some_and(|t| !ours.contains(&t)))
        .cloned()
        .collect()
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
