//! A compiled format.

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use super::operator::{Headers, Segment, parse};
use super::record::Captured;
use super::sink::Queue;
use super::{Encoding, LogRecord, render};

/// Istio's text format since 1.9 (without the line feed, which is always added).
pub const DEFAULT_TEXT_FORMAT: &str = "[%START_TIME%] \
    \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// Istio's JSON keys, then our own: the reason in words and who talked to whom.
const DEFAULT_JSON_FORMAT: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("reason", "%REASON%"),
    ("reporter", "%REPORTER%"),
    ("source_workload", "%SOURCE_WORKLOAD%"),
    ("source_namespace", "%SOURCE_NAMESPACE%"),
    ("source_principal", "%SOURCE_PRINCIPAL%"),
    ("destination_workload", "%DESTINATION_WORKLOAD%"),
    ("destination_namespace", "%DESTINATION_NAMESPACE%"),
    ("destination_principal", "%DESTINATION_PRINCIPAL%"),
];

/// Why `accessLogFormat` was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// An operator is not known or not well formed.
    #[error("accessLogFormat: %{operator}%: {why}")]
    Operator {
        /// The operator as it was written.
        operator: String,
        /// What is wrong with it.
        why: String,
    },
    /// A `%` without its partner.
    #[error("accessLogFormat: the operator that begins with \"%{0}\" has no closing '%'")]
    Unclosed(String),
    /// With JSON encoding the format has to be a JSON object.
    #[error("accessLogFormat: with accessLogEncoding JSON it has to be a JSON object: {0}")]
    Json(String),
}

/// A field of a JSON line.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    /// Encoded already.
    Literal(String),
    /// One operator alone keeps its type; more are put together to a string.
    Template(Vec<Segment>),
    Object(Vec<(String, Field)>),
}

#[derive(Clone, Debug)]
pub(crate) enum Layout {
    Text(Vec<Segment>),
    /// Keys are encoded, with their quotes.
    Json(Vec<(String, Field)>),
}

/// A compiled access log format, with the way to its file. Keep it from the beginning of a request
/// to its end.
#[derive(Debug)]
pub struct LogFormat {
    layout: Layout,
    headers: Headers,
    pub(crate) sink: Queue,
}

impl LogFormat {
    /// Compiles a format; empty: Istio's default of the encoding. A format compiled by hand writes
    /// nowhere: it is for validation and rendering.
    ///
    /// # Errors
    /// [`FormatError`] names the operator and what is wrong with it.
    pub fn compile(encoding: Encoding, format: &str) -> Result<Self, FormatError> {
        let mut headers = Headers::default();
        let layout = match encoding {
            Encoding::Text => {
                let format = if format.is_empty() { DEFAULT_TEXT_FORMAT } else { format };
                Layout::Text(parse(format.trim_end_matches('\n'), &mut headers)?)
            }
            Encoding::Json if format.is_empty() => {
                let mut fields = Vec::with_capacity(DEFAULT_JSON_FORMAT.len());
                for (key, template) in DEFAULT_JSON_FORMAT {
                    let field = Field::Template(parse(template, &mut headers)?);
                    fields.push((format!("\"{key}\""), field));
                }
                Layout::Json(fields)
            }
            Encoding::Json => {
                let map: Map<String, Value> = serde_json::from_str(format)
                    .map_err(|error| FormatError::Json(error.to_string()))?;
                Layout::Json(object(map, &mut headers)?)
            }
        };
        Ok(Self { layout, headers, sink: Queue::default() })
    }

    /// Takes from a request's headers what the format mentions.
    #[must_use]
    pub fn capture_request(&self, headers: &HeaderMap) -> Captured {
        capture(&self.headers.request, headers)
    }

    /// Takes one more of a request's headers, which it got after the others were taken. What was
    /// there before stays.
    pub fn add_request(&self, captured: &mut Captured, name: &HeaderName, headers: &HeaderMap) {
        for (wanted, value) in self.headers.request.iter().zip(&mut captured.0) {
            if wanted == name && value.is_none() {
                *value = headers.get(name).cloned();
            }
        }
    }

    /// Takes from a response's headers what the format mentions.
    #[must_use]
    pub fn capture_response(&self, headers: &HeaderMap) -> Captured {
        capture(&self.headers.response, headers)
    }

    /// Appends the line of a record, with its line feed.
    pub fn render(&self, record: &LogRecord<'_>, line: &mut Vec<u8>) {
        render::line(&self.layout, record, line);
    }
}

fn capture(names: &[HeaderName], headers: &HeaderMap) -> Captured {
    Captured(names.iter().map(|name| headers.get(name).cloned()).collect())
}

fn object(
    map: Map<String, Value>,
    headers: &mut Headers,
) -> Result<Vec<(String, Field)>, FormatError> {
    let mut fields = Vec::with_capacity(map.len());
    for (key, value) in map {
        let field = match value {
            Value::String(template) => Field::Template(parse(&template, headers)?),
            Value::Object(inner) => Field::Object(object(inner, headers)?),
            other => Field::Literal(other.to_string()),
        };
        fields.push((Value::String(key).to_string(), field));
    }
    Ok(fields)
}
