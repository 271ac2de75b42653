//! Why a value does not fit its type: serde's errors, in the words of a person and with a place.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use super::suggest::suggest;

/// Why a value does not fit its type, and where.
#[derive(Debug)]
pub(crate) struct Mismatch(Box<MismatchParts>);

#[derive(Debug)]
pub(crate) struct MismatchParts {
    pub(crate) message: String,
    pub(crate) allowed: Option<String>,
    /// Set where the error passes the first node on its way out, which is the innermost.
    pub(crate) place: Option<(String, u32)>,
}

impl Mismatch {
    fn new(message: String, allowed: Option<String>) -> Self {
        Self(Box::new(MismatchParts { message, allowed, place: None }))
    }

    pub(crate) fn into_parts(self) -> MismatchParts {
        *self.0
    }

    pub(super) fn parts_mut(&mut self) -> &mut MismatchParts {
        &mut self.0
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string(), None)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("{unexpected} does not fit here"), Some(expected.to_string()))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("{unexpected} is not valid here"), Some(expected.to_string()))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let known = match suggest(variant, expected) {
            Some(near) => format!("did you mean {near}? one of {}", expected.join(", ")),
            None => format!("one of {}", expected.join(", ")),
        };
        Self::new(format!("{variant:?} is not known here"), Some(known))
    }
}
