//! What is wrong with what was written, said so that a person finds the place and the cure.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey};
use serde::{Serialize, Serializer};

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object (or file) is not used; its last good version stays.
    Error,
    /// The object is used, but something in it has no effect or is doubtful.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// What becomes of something that is written; the later, the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// It does what it says.
    #[default]
    Enforced,
    /// It does some of what it says, and whoever writes it is told what.
    Partly,
    /// It has no effect yet, and whoever writes it is told so; a policy that needs it is refused.
    NotEnforced,
    /// It is not built yet, and traffic that it would apply to is refused; whoever writes it is
    /// told so.
    Refused,
}

impl Effect {
    /// Whether it does all that it says.
    #[must_use]
    pub fn is_full(&self) -> bool {
        *self == Self::Enforced
    }
}

/// An object as it was written, which may be of a kind that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectRef {
    /// `kind:`
    pub kind: String,
    /// Namespace; empty if cluster-scoped or not given.
    pub namespace: String,
    /// Name; empty if not given.
    pub name: String,
}

impl ObjectRef {
    /// The key, if the kind is known and a name is there.
    #[must_use]
    pub fn key(&self) -> Option<ObjectKey> {
        let kind = Kind::from_name(&self.kind)?;
        (!self.name.is_empty()).then(|| ObjectKey::new(kind, &self.namespace, &self.name))
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        f.write_str(kind)?;
        match (namespace.is_empty(), name.is_empty()) {
            (_, true) => Ok(()),
            (true, false) => write!(f, " {name}"),
            (false, false) => write!(f, " {namespace}/{name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What becomes of what it is about, if it is about something that is not fully built yet.
    #[serde(skip_serializing_if = "Effect::is_full")]
    pub effect: Effect,
    /// The file.
    #[serde(serialize_with = "path_text")]
    pub file: Arc<PathBuf>,
    /// The document within the file, counted from 1; 0 speaks of the file as a whole.
    pub document: usize,
    /// The line, counted from 1, where it is known.
    pub line: Option<u32>,
    /// The object, where it is known.
    pub object: Option<ObjectRef>,
    /// The field, such as `spec.http[0].route[1].weight`; empty if it is about the object.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub allowed: Option<String>,
}

fn path_text<S: Serializer>(path: &Arc<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Problem {
    /// A problem of a file as a whole.
    pub(crate) fn of_file(file: &Arc<PathBuf>, message: String, allowed: Option<String>) -> Self {
        Self {
            severity: Severity::Error,
            effect: Effect::Enforced,
            file: Arc::clone(file),
            document: 0,
            line: None,
            object: None,
            field: String::new(),
            message,
            allowed,
        }
    }

    /// Whether the object or file is not used because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.severity)?;
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(allowed) = &self.allowed {
            write!(f, " ({allowed})")?;
        }
        Ok(())
    }
}
