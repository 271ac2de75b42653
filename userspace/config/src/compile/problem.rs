//! What the compiler has to say about an object that is well-formed but cannot have its effect.

use std::fmt;

use fairlead_api::ObjectKey;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The object works, but not all of it.
    Warning,
    /// What the object asks for is refused: its traffic is, until the object is mended.
    Error,
}

/// A problem of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Of which object.
    pub object: ObjectKey,
    /// Field path within the object, such as `spec.http[1].route[0].destination.subset`.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, what follows, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, severity, message } = self;
        let severity = match severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{object}: {field}: {severity}: {message}")
    }
}

/// Collects the problems of one object.
pub(super) struct Report<'a> {
    object: &'a ObjectKey,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Report<'a> {
    pub(super) fn new(object: &'a ObjectKey, problems: &'a mut Vec<Problem>) -> Self {
        Self { object, problems }
    }

    pub(super) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Warning, field.into(), message.into());
    }

    pub(super) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, field.into(), message.into());
    }

    fn push(&mut self, severity: Severity, field: String, message: String) {
        self.problems.push(Problem { object: self.object.clone(), field, severity, message });
    }
}
