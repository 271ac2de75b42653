//! Istio `networking/v1alpha3.StringMatch`.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer};

/// How a string is matched; case-sensitive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StringMatch {
    /// `{}`: nothing was said. For a header or query parameter it means "is present"; elsewhere
    /// it is refused by validation.
    #[default]
    Present,
    /// Equal to the text.
    Exact(String),
    /// Begins with the text.
    Prefix(String),
    /// The whole string matches the RE2 expression.
    Regex(String),
}

impl<'de> Deserialize<'de> for StringMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename = "StringMatch", default)]
        struct Written {
            exact: Option<String>,
            prefix: Option<String>,
            regex: Option<String>,
        }
        let written = Written::deserialize(deserializer)?;
        match (written.exact, written.prefix, written.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(text), None, None) => Ok(Self::Exact(text)),
            (None, Some(text), None) => Ok(Self::Prefix(text)),
            (None, None, Some(text)) => Ok(Self::Regex(text)),
            _ => Err(de::Error::custom("only one of exact, prefix, regex may be set")),
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Exact(text) => write!(f, "exact:{text}"),
            Self::Prefix(text) => write!(f, "prefix:{text}"),
            Self::Regex(text) => write!(f, "regex:{text}"),
        }
    }
}
