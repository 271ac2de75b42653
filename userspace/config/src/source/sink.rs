//! Where the checks of one object tell what they find.

use std::path::PathBuf;
use std::sync::Arc;

use super::path::Path;
use super::problem::{Effect, ObjectRef, Problem, Severity};
use super::tree::Node;

/// Most problems that are told of one object; the rest is counted.
const MAX_PROBLEMS: usize = 100;

/// Collects the problems of one object.
pub(crate) struct Sink<'s> {
    file: &'s Arc<PathBuf>,
    document: usize,
    node: &'s Node<'s>,
    object: Option<ObjectRef>,
    problems: Vec<Problem>,
    errors: usize,
    left_out: usize,
    /// The worst of what is left out.
    left_out_effect: Effect,
}

impl<'s> Sink<'s> {
    pub(crate) fn new(file: &'s Arc<PathBuf>, document: usize, node: &'s Node<'s>) -> Self {
        Self {
            file,
            document,
            node,
            object: None,
            problems: Vec::new(),
            errors: 0,
            left_out: 0,
            left_out_effect: Effect::Enforced,
        }
    }

    /// From here on, problems are of this object.
    pub(crate) fn set_object(&mut self, object: ObjectRef) {
        self.object = Some(object);
    }

    /// The document as it was written.
    pub(crate) fn node(&self) -> &'s Node<'s> {
        self.node
    }

    /// Whether something is wrong enough to reject the object.
    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The object cannot be used. An empty `allowed` says nothing.
    pub(crate) fn error(&mut self, at: &Path<'_>, message: impl Into<String>, allowed: &str) {
        let line = self.node.line_of(at);
        self.add(Severity::Error, at.to_string(), line, message.into(), allowed);
    }

    /// The object can be used, but a person should look. An empty `allowed` says nothing.
    pub(crate) fn warn(&mut self, at: &Path<'_>, message: impl Into<String>, allowed: &str) {
        let line = self.node.line_of(at);
        self.add(Severity::Warning, at.to_string(), line, message.into(), allowed);
    }

    /// The object can be used, but this does not do all that it says.
    pub(crate) fn warn_of(
        &mut self,
        effect: Effect,
        at: &Path<'_>,
        message: impl Into<String>,
        allowed: &str,
    ) {
        let line = self.node.line_of(at);
        self.put(Severity::Warning, effect, at.to_string(), line, message.into(), allowed);
    }

    /// The object cannot be used, because this is not built yet.
    pub(crate) fn unbuilt(&mut self, at: &Path<'_>, message: impl Into<String>, allowed: &str) {
        let line = self.node.line_of(at);
        let effect = Effect::NotEnforced;
        self.put(Severity::Error, effect, at.to_string(), line, message.into(), allowed);
    }

    /// As the others, with the place already known.
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        field: String,
        line: Option<u32>,
        message: String,
        allowed: &str,
    ) {
        self.put(severity, Effect::Enforced, field, line, message, allowed);
    }

    /// As [`Self::add`], of something that does not do all that it says.
    pub(crate) fn put(
        &mut self,
        severity: Severity,
        effect: Effect,
        field: String,
        line: Option<u32>,
        message: String,
        allowed: &str,
    ) {
        self.errors += usize::from(severity == Severity::Error);
        if self.problems.len() >= MAX_PROBLEMS {
            self.left_out += 1;
            self.left_out_effect = self.left_out_effect.max(effect);
            return;
        }
        self.problems.push(Problem {
            severity,
            effect,
            file: Arc::clone(self.file),
            document: self.document,
            line,
            object: self.object.clone(),
            field,
            message,
            allowed: (!allowed.is_empty()).then(|| allowed.to_owned()),
        });
    }

    /// All that was told.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        if self.left_out > 0 {
            let message = format!("and {} more problems", self.left_out);
            let severity = if self.errors > 0 { Severity::Error } else { Severity::Warning };
            self.problems.push(Problem {
                severity,
                effect: self.left_out_effect,
                file: Arc::clone(self.file),
                document: self.document,
                line: None,
                object: self.object,
                field: String::new(),
                message,
                allowed: None,
            });
        }
        self.problems
    }
}
