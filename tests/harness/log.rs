//! The access log, JSON encoding: one object a line.

use std::path::Path;

use serde_json::Value;

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct Entry(pub Value);

impl Entry {
    /// A field as text; numbers in decimal, absent fields empty.
    #[must_use]
    pub fn text(&self, field: &str) -> String {
        match &self.0[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// A field as a number; 0 when it is none.
    #[must_use]
    pub fn number(&self, field: &str) -> f64 {
        match &self.0[field] {
            Value::Number(n) => n.as_f64().unwrap_or(0.0),
            Value::String(text) => text.parse().unwrap_or(0.0),
            _ => 0.0,
        }
    }

    /// Whether the line, as text, has `text` anywhere.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.to_string().contains(text)
    }
}

/// The whole lines of a log; lines that are not JSON are kept as text under `"line"`.
#[must_use]
pub fn read(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            let value = serde_json::from_str(line);
            Entry(value.unwrap_or_else(|_| serde_json::json!({ "line": line })))
        })
        .collect()
}
