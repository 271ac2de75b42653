//! `admission.k8s.io/v1` AdmissionReview: what is read of a request, and the answer.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::decide::Decision;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Most warnings of an answer, and characters of each (Kubernetes cuts longer ones).
const MAX_WARNINGS: usize = 12;
const MAX_WARNING: usize = 250;
/// Most causes of an answer.
const MAX_CAUSES: usize = 32;
/// Characters of the message: a person reads it in a terminal.
const MAX_MESSAGE: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    #[serde(borrow)]
    request: Option<Review<'a>>,
}

/// AdmissionRequest, what matters of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review<'a> {
    pub(super) uid: String,
    pub(super) kind: GroupVersionKind,
    #[serde(default)]
    pub(super) sub_resource: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    pub(super) operation: String,
    #[serde(borrow, default)]
    pub(super) object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) old_object: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
pub(super) struct GroupVersionKind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

/// Reads a review.
pub(super) fn read(bytes: &[u8]) -> Result<Review<'_>, String> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|e| format!("not an {KIND}: {e}"))?;
    if envelope.api_version != API_VERSION || envelope.kind != KIND {
        return Err(format!("not an {KIND} of {API_VERSION}"));
    }
    envelope.request.ok_or_else(|| "a review without a request".to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: AdmissionResponse<'a>,
}

#[derive(Serialize)]
struct AdmissionResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status<'a> {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
    details: Details<'a>,
}

#[derive(Serialize)]
struct Details<'a> {
    name: &'a str,
    group: &'a str,
    kind: &'a str,
    causes: Vec<Cause<'a>>,
}

#[derive(Serialize)]
struct Cause<'a> {
    reason: &'static str,
    message: String,
    field: &'a str,
}

/// The answer as JSON.
pub(super) fn answer(review: &Review<'_>, decision: &Decision) -> Vec<u8> {
    let status = (!decision.denied.is_empty()).then(|| {
        let lines: Vec<String> = decision.denied.iter().map(ToString::to_string).collect();
        Status {
            status: "Failure",
            code: 422,
            reason: "Invalid",
            message: cut(&lines.join("; "), MAX_MESSAGE),
            details: Details {
                name: review.name.as_deref().unwrap_or_default(),
                group: &review.kind.group,
                kind: &review.kind.kind,
                causes: decision
                    .denied
                    .iter()
                    .take(MAX_CAUSES)
                    .map(|fault| Cause {
                        reason: "FieldValueInvalid",
                        message: cut(&fault.reason(), MAX_MESSAGE),
                        field: &fault.field,
                    })
                    .collect(),
            },
        }
    });
    let mut warnings: Vec<String> = decision
        .warnings
        .iter()
        .take(MAX_WARNINGS)
        .map(|fault| cut(&fault.to_string(), MAX_WARNING))
        .collect();
    if decision.warnings.len() > MAX_WARNINGS {
        warnings.push(format!("and {} more", decision.warnings.len() - MAX_WARNINGS));
    }
    let response = AdmissionResponse {
        uid: &review.uid,
        allowed: decision.denied.is_empty(),
        status,
        warnings,
    };
    let answer = Answer { api_version: API_VERSION, kind: KIND, response };
    serde_json::to_vec(&answer).unwrap_or_default()
}

/// The text, cut with an ellipsis if it is longer than so many characters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
