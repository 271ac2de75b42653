//! `fairlead validate`: what a node would say about these files, before any node sees them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use fairlead_api::{Kind, ObjectKey, Resource};
use fairlead_config::compile::{self, Compiler, CompilerSettings, Update};
use fairlead_config::source::{self, Effect, Loader, ObjectRef, Problem, Severity, Store};
use serde::Serialize;

use crate::output::{Format, Table, to_yaml};

/// Nodes whose view of the configuration is compiled.
const MAX_NODES: usize = 8;

const HELP: &str = "\
Examples:
  fairlead validate config/                     a directory, with all below it
  fairlead validate virtual-service.yaml        a single file
  fairlead validate config/ -o json | jq .problems
  kubectl get vs,dr,authorizationpolicy -A -o yaml > all.yaml && fairlead validate all.yaml

Exit codes: 0 nothing wrong (warnings do not count), 1 errors, 2 wrong usage or a missing path.";

/// Check configuration files before they are used.
///
/// Reads Kubernetes and Istio resources as a node does, and reports everything that is wrong with
/// its file, line, object and field, and what is allowed there. An object with an error is not
/// used; with warnings alone it is.
///
/// If there are Services among them, the paths count as a whole mesh, and references between
/// objects (hosts, subsets) are checked as well.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Validate {
    /// Files, and directories of .yaml, .yml and .json files.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The form of the report.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,

    /// Count warnings as errors.
    #[arg(long)]
    strict: bool,
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    files: usize,
    objects: usize,
    errors: usize,
    warnings: usize,
    /// Whether hosts and subsets that objects refer to were looked for.
    references_checked: bool,
    problems: Vec<Problem>,
}

impl Validate {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        for path in &self.paths {
            ensure!(path.exists(), "{} is not there", path.display());
        }
        let mut store = Store::default();
        store.apply(Loader::new(self.paths.clone()).scan());
        let report = report(&store);
        print(&report, self.output)?;
        let failed = report.errors > 0 || self.strict && report.warnings > 0;
        Ok(ExitCode::from(u8::from(failed)))
    }
}

fn report(store: &Store) -> Report {
    let mut problems = store.problems();
    // A file of routes alone refers to services that are elsewhere; that is no fault of it.
    let references_checked = store.of_kind(Kind::Service).next().is_some();
    if references_checked {
        let found = compiled(store, &mut problems);
        problems.extend(found);
    }
    problems.sort_by(|a, b| (&a.file, a.document, a.line).cmp(&(&b.file, b.document, b.line)));
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    Report {
        files: store.file_count(),
        objects: store.len(),
        errors,
        warnings: problems.len() - errors,
        references_checked,
        problems,
    }
}

/// What is wrong between objects: a node's compiler knows. Problems that the files themselves
/// show (`known`) are not repeated, but may turn out to be worse.
fn compiled(store: &Store, known: &mut [Problem]) -> Vec<Problem> {
    let objects: Vec<(ObjectKey, Option<Resource>)> =
        store.iter().map(|(key, object)| (key.clone(), Some(object.clone()))).collect();
    let mut nodes: BTreeSet<&str> = store
        .iter()
        .filter_map(|(_, object)| match object {
            Resource::Pod(pod) => Some(pod.spec.node_name.as_str()),
            _ => None,
        })
        .filter(|name| !name.is_empty())
        .collect();
    nodes.insert("");
    let mut found: BTreeSet<compile::Problem> = BTreeSet::new();
    for node in nodes.into_iter().take(MAX_NODES) {
        let mut compiler = Compiler::new(CompilerSettings::new(node));
        compiler.apply(&Update { objects: &objects, fail_closed: None });
        found.extend(compiler.problems());
    }
    let mut placed = Vec::new();
    for problem in found {
        let of = |other: &&mut Problem| {
            other.field == problem.field
                && other.object.as_ref().and_then(ObjectRef::key).as_ref() == Some(&problem.object)
        };
        match known.iter_mut().find(of) {
            Some(known) if problem.severity == compile::Severity::Error => {
                known.severity = Severity::Error;
            }
            Some(_) => {}
            None => placed.extend(place(store, problem)),
        }
    }
    find_lines(&mut placed);
    placed.into_iter().map(|(_, problem)| problem).collect()
}

/// Looks the lines up in the files.
fn find_lines(placed: &mut [(ObjectKey, Problem)]) {
    placed.sort_by(|(_, a), (_, b)| a.file.cmp(&b.file));
    for of_file in placed.chunk_by_mut(|(_, a), (_, b)| a.file == b.file) {
        let Some((_, Problem { file, .. })) = of_file.first() else { continue };
        // A file that has changed since has no lines to show.
        let Ok(text) = fs::read_to_string(file.as_path()) else { continue };
        let format = source::Format::of(file);
        let fields: Vec<(&ObjectKey, &str)> =
            of_file.iter().map(|(key, problem)| (key, problem.field.as_str())).collect();
        let found = source::locate(&text, format, &fields);
        for ((_, problem), location) in of_file.iter_mut().zip(found) {
            if let Some(location) = location {
                problem.document = location.document;
                problem.line = location.line;
            }
        }
    }
}

/// Gives a compiler's problem the file of its object.
fn place(store: &Store, problem: compile::Problem) -> Option<(ObjectKey, Problem)> {
    let compile::Problem { object, field, severity, message } = problem;
    let placed = Problem {
        severity: match severity {
            compile::Severity::Error => Severity::Error,
            compile::Severity::Warning => Severity::Warning,
        },
        effect: Effect::Enforced,
        file: store.file_of(&object)?.clone(),
        document: 0,
        line: None,
        object: Some(ObjectRef {
            kind: object.kind.to_string(),
            namespace: object.namespace.to_string(),
            name: object.name.to_string(),
        }),
        field,
        message,
        allowed: None,
    };
    Some((object, placed))
}

fn print(report: &Report, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let result = match format {
        Format::Table => print_table(report, &mut out),
        Format::Json => serde_json::to_writer_pretty(&mut out, report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        Format::Yaml => {
            let value = serde_json::to_value(report).map_err(io::Error::from)?;
            out.write_all(to_yaml(&value).as_bytes())
        }
    };
    match result {
        // Whoever reads us has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn print_table(report: &Report, out: &mut impl Write) -> io::Result<()> {
    if !report.problems.is_empty() {
        let mut table = Table::new(["SEVERITY", "FILE", "OBJECT", "FIELD", "PROBLEM"]);
        for problem in &report.problems {
            let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
            let allowed = problem.allowed.as_ref().map(|a| format!(" ({a})")).unwrap_or_default();
            let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
            table.row([
                problem.severity.to_string(),
                format!("{}{line}", problem.file.display()),
                dash(problem.object.as_ref().map(ToString::to_string).unwrap_or_default()),
                dash(problem.field.clone()),
                format!("{}{allowed}", problem.message),
            ]);
        }
        table.write(out)?;
        writeln!(out)?;
    }
    let Report { files, objects, errors, warnings, references_checked, .. } = report;
    writeln!(
        out,
        "{}, {}: {}, {}",
        count(*files, "file"),
        count(*objects, "good object"),
        count(*errors, "error"),
        count(*warnings, "warning")
    )?;
    if !references_checked && *objects > 0 {
        writeln!(out, "no Service among them: references between objects were not checked")?;
    }
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
