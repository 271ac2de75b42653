//! What the clients of `fairlead-apps` tell, typed.

use anyhow::{Context, Result};
use serde_json::Value;

/// An answer to an HTTP request (`get`, `grpc`, `ws`).
#[derive(Clone, Debug)]
pub struct Reply(pub Value);

impl Reply {
    /// Status; 0 when there was no answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0["status"].as_u64().and_then(|s| u16::try_from(s).ok()).unwrap_or(0)
    }

    /// A response header, empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.0["headers"][name].as_str().unwrap_or_default().to_owned()
    }

    /// A request header as the echo server saw it; all values, joined by commas.
    #[must_use]
    pub fn seen(&self, name: &str) -> Option<String> {
        let all = self.0["json"]["headers"].as_array()?;
        let values: Vec<_> = all
            .iter()
            .filter(|pair| pair[0].as_str() == Some(name))
            .filter_map(|pair| pair[1].as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// A field of the echo server's answer, as text.
    #[must_use]
    pub fn echo(&self, field: &str) -> String {
        match &self.0["json"][field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// Version that answered.
    #[must_use]
    pub fn version(&self) -> String {
        self.header("x-version")
    }

    /// Body.
    #[must_use]
    pub fn body(&self) -> String {
        self.0["body"].as_str().unwrap_or_default().to_owned()
    }

    /// Milliseconds it took.
    #[must_use]
    pub fn ms(&self) -> f64 {
        self.0["ms"].as_f64().unwrap_or(0.0)
    }

    /// Why there was no answer.
    #[must_use]
    pub fn error(&self) -> String {
        self.0["error"].as_str().unwrap_or_default().to_owned()
    }
}

/// What a raw TCP exchange gave (`send`).
#[derive(Clone, Debug)]
pub struct Sent(pub Value);

impl Sent {
    /// Whether `connect()` succeeded.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.0["connected"].as_bool().unwrap_or(false)
    }

    /// All that came.
    #[must_use]
    pub fn received(&self) -> String {
        self.0["received"].as_str().unwrap_or_default().to_owned()
    }

    /// `fin`, `reset`, `open`, `refused`, `timeout` or `error`.
    #[must_use]
    pub fn end(&self) -> String {
        self.0["end"].as_str().unwrap_or_default().to_owned()
    }

    /// Milliseconds to the first byte.
    #[must_use]
    pub fn first_byte_ms(&self) -> Option<f64> {
        self.0["first_byte_ms"].as_f64()
    }

    /// Our own address.
    #[must_use]
    pub fn local(&self) -> String {
        self.0["local"].as_str().unwrap_or_default().to_owned()
    }

    /// A field of the greeting of the TCP echo server.
    #[must_use]
    pub fn greeting(&self, field: &str) -> String {
        let text = self.received();
        text.find('{')
            .and_then(|at| text[at..].lines().next())
            .and_then(|line| serde_json::from_str::<Value>(line).ok())
            .and_then(|told| told[field].as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// What the load generator counted (`load`).
#[derive(Clone, Debug)]
pub struct Load(pub Value);

impl Load {
    /// A count: `requests`, `ok`, `failed`.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }

    /// Answers by status.
    #[must_use]
    pub fn status(&self, status: u16) -> u64 {
        self.0["statuses"][status.to_string()].as_u64().unwrap_or(0)
    }

    /// Answers by version.
    #[must_use]
    pub fn version(&self, version: &str) -> u64 {
        self.0["versions"][version].as_u64().unwrap_or(0)
    }

    /// Answers by pod.
    #[must_use]
    pub fn pod(&self, pod: &str) -> u64 {
        self.0["pods"][pod].as_u64().unwrap_or(0)
    }

    /// `rps`, `seconds`, `p50_ms`, `p90_ms`, `p99_ms`, `max_ms`.
    #[must_use]
    pub fn figure(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or(0.0)
    }

    /// What went wrong, as text.
    #[must_use]
    pub fn errors(&self) -> String {
        self.0["errors"].to_string()
    }
}

/// The last JSON object of an output.
///
/// # Errors
/// There is none.
pub fn last_json(output: &str) -> Result<Value> {
    let line = output.lines().rev().find(|l| l.starts_with('{'));
    Ok(serde_json::from_str(line.with_context(|| format!("no JSON in {output:?}"))?)?)
}

/// All JSON objects of an output.
///
/// # Errors
/// One is not JSON.
pub fn all_json(output: &str) -> Result<Vec<Value>> {
    let lines = output.lines().filter(|l| l.starts_with('{'));
    lines.map(|l| serde_json::from_str(l).with_context(|| l.to_owned())).collect()
}
