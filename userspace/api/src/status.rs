//! `status` of Istio's kinds (Istio `meta/v1alpha1.IstioStatus`): what became of a resource.

use serde::{Deserialize, Serialize};

/// `status` of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceStatus {
    /// Whether the nodes took the resource, by type of condition.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What a person should look at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation_messages: Vec<ValidationMessage>,
    /// Generation of the spec that the status is about.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::int_or_string))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// `IstioCondition`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Type of the condition, in CamelCase.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// When it was last looked at.
    #[cfg_attr(feature = "schema", schemars(extend("format" = "date-time")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<String>,
    /// When its status last changed.
    #[cfg_attr(feature = "schema", schemars(extend("format" = "date-time")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// One word that says why.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Generation of the spec that the condition is about.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::int_or_string))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows (yet).
    #[default]
    Unknown,
}

/// A word in Istio's own definitions, so that what other controllers write stays valid.
#[cfg(feature = "schema")]
impl schemars::JsonSchema for ConditionStatus {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConditionStatus".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string"})
    }
}

/// `AnalysisMessageBase`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ValidationMessage {
    /// Which message it is.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<MessageType>,
    /// How bad it is.
    pub level: MessageLevel,
    /// Where the message is explained.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub documentation_url: String,
}

/// `AnalysisMessageBase.Type`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MessageType {
    /// Name of the message.
    pub name: String,
    /// Code of the message, such as `IST0101`.
    pub code: String,
}

/// `AnalysisMessageBase.Level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MessageLevel {
    /// Unset.
    #[default]
    Unknown,
    /// The resource cannot be used.
    Error,
    /// A person should look.
    Warning,
    /// Worth knowing.
    Info,
}
