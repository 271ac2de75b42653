//! Documents good and bad, hot reload, hostile input.

mod documents;
mod fields;
mod hostile;
mod load;
mod reload;
mod routing;
mod security;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Format, Parsed, Problem, parse};

/// Parses one YAML text.
fn yaml(text: &str) -> Parsed {
    parse(&Arc::new(PathBuf::from("test.yaml")), text, Format::Yaml)
}

/// Severity, line and field of each problem, as in `error 7 spec.hosts`.
fn summary(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|p| format!("{} {} {}", p.severity, p.line.unwrap_or(0), p.field)).collect()
}

/// Wraps a spec (indented by two) into an object of the kind.
fn object(api_version: &str, kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x, namespace: ns}}\nspec:\n{spec}"
    )
}

/// Asserts that the spec has an error at exactly these fields; an empty list means that it is
/// good, warnings aside.
fn assert_errors(api_version: &str, kind: &str, spec: &str, fields: &[&str]) {
    let parsed = yaml(&object(api_version, kind, spec));
    let errors: Vec<&Problem> = parsed.problems.iter().filter(|p| p.is_error()).collect();
    let found: Vec<&str> = errors.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(found, fields, "of\n{spec}\n{errors:#?}");
    assert_eq!(parsed.objects.len(), usize::from(fields.is_empty()), "of\n{spec}");
    assert_eq!(parsed.rejected.len(), usize::from(!fields.is_empty()), "of\n{spec}");
}

/// Asserts that the spec is good but has a warning at exactly these fields.
fn assert_warnings(api_version: &str, kind: &str, spec: &str, fields: &[&str]) {
    let parsed = yaml(&object(api_version, kind, spec));
    let found: Vec<&str> = parsed.problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(found, fields, "of\n{spec}\n{:#?}", parsed.problems);
    assert!(!parsed.problems.iter().any(Problem::is_error), "{:#?}", parsed.problems);
    assert_eq!(parsed.objects.len(), 1);
}

/// A directory of its own, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("fairlead-config-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Namespace with a label.
fn namespace(name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{v: '{label}'}}\n"
    )
}
