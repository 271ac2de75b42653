//! What is wrong with the configuration now, and how loading went: for `/problems`, `/ready` and
//! the metrics.

use std::path::Path;
use std::time::{Duration, SystemTime};

use fairlead_config::{compile, source};
use serde_json::{Value, json};

/// Problems that are kept; the number of all is told.
const MAX_ENTRIES: usize = 1000;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// File and line, where it is known.
    pub file: Option<String>,
    /// The object, where it is known.
    pub object: Option<String>,
    /// Field path.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed.
    pub allowed: Option<String>,
}

const ERROR: &str = "error";
const WARNING: &str = "warning";

impl From<&source::Problem> for Entry {
    fn from(problem: &source::Problem) -> Self {
        let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
        Self {
            severity: if problem.is_error() { ERROR } else { WARNING },
            file: Some(format!("{}{line}", problem.file.display())),
            object: problem.object.as_ref().map(ToString::to_string),
            field: problem.field.clone(),
            message: problem.message.clone(),
            allowed: problem.allowed.clone(),
        }
    }
}

impl From<&compile::Problem> for Entry {
    fn from(problem: &compile::Problem) -> Self {
        Self {
            severity: match problem.severity {
                compile::Severity::Error => ERROR,
                compile::Severity::Warning => WARNING,
            },
            file: None,
            object: Some(problem.object.to_string()),
            field: problem.field.clone(),
            message: problem.message.clone(),
            allowed: None,
        }
    }
}

impl Entry {
    /// A path that may hold security policies that nobody could ever read.
    pub(super) fn suspect(file: &Path) -> Self {
        Self {
            severity: ERROR,
            file: Some(file.display().to_string()),
            object: None,
            field: String::new(),
            message:
                "what is written here cannot be read, and may hold security policies of which \
                      no earlier version is in force: all traffic to pods of this node is denied \
                      until it can be"
                    .into(),
            allowed: Some("mend what the other problems of this file say, or remove it".into()),
        }
    }

    fn json(&self) -> Value {
        json!({
            "severity": self.severity,
            "file": self.file,
            "object": self.object,
            "field": self.field,
            "message": self.message,
            "allowed": self.allowed,
        })
    }
}

/// The state of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Version of the snapshot.
    pub version: u64,
    /// Objects in force.
    pub objects: usize,
    /// Changes applied since the start.
    pub loads: u64,
    /// When the last one was.
    pub at: Option<SystemTime>,
    /// How long compiling it took.
    pub took: Duration,
    /// Whether everything in the source could be read and used.
    pub complete: bool,
    /// Whether the source itself has told all of it since the daemon started: what was only kept
    /// on disk may lack what has come since.
    pub current: bool,
    /// Namespaces and Pods that are refused and have no good version.
    pub unenrolled: Vec<String>,
    /// Number of errors and of warnings.
    pub counts: [usize; 2],
    /// The problems, no more than [`MAX_ENTRIES`].
    pub entries: Vec<Entry>,
}

impl Report {
    pub(super) fn loaded(
        &mut self,
        version: u64,
        objects: usize,
        took: Duration,
        complete: bool,
        mut entries: Vec<Entry>,
    ) {
        let errors = entries.iter().filter(|e| e.severity == ERROR).count();
        self.counts = [errors, entries.len() - errors];
        entries.truncate(MAX_ENTRIES);
        *self = Self {
            version,
            objects,
            loads: self.loads + 1,
            at: Some(SystemTime::now()),
            took,
            complete,
            current: self.current,
            unenrolled: std::mem::take(&mut self.unenrolled),
            counts: self.counts,
            entries,
        };
    }

    /// As the admin API shows it; `more` are problems that others have found.
    #[must_use]
    pub fn json(&self, more: &[Entry]) -> Value {
        let entries: Vec<Value> = more.iter().chain(&self.entries).map(Entry::json).collect();
        json!({
            "snapshotVersion": self.version,
            "objects": self.objects,
            "changesApplied": self.loads,
            "errors": self.counts[0] + more.len(),
            "warnings": self.counts[1],
            "problems": entries,
        })
    }
}

/// A problem of the daemon's own with something that the configuration asks for.
#[must_use]
pub fn refused(object: &str, field: &str, message: String) -> Entry {
    Entry {
        severity: ERROR,
        file: None,
        object: Some(object.into()),
        field: field.into(),
        message,
        allowed: None,
    }
}
