//! Files of YAML: to resources, to a snapshot.

use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::{ObjectKey, Resource};
use fairlead_config::compile::{Compiler, CompilerSettings, Update};
use fairlead_config::source::{Format, Parsed, Severity, mesh_config_from_file, parse};

use crate::input;

/// Any text is read or refused, with words; what is good compiles, comes out the same again, and
/// goes away without a trace.
pub fn yaml(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    let file = Arc::new(PathBuf::from("fuzz.yaml"));
    let parsed = parse(&file, text, Format::Yaml);
    judge(&parsed);
    compile(parsed);
    mesh(&file, text);
}

/// The same of JSON, of which a document is readable exactly if it is JSON.
pub fn json(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    let parsed = parse(&Arc::new(PathBuf::from("fuzz.json")), text, Format::Json);
    judge(&parsed);
    let documents = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let valid = documents.into_iter().all(|document| document.is_ok());
    assert!(valid || parsed.unreadable, "what is no JSON was read");
    // A key that is there twice is JSON, but nothing that anybody can mean.
    let twice = parsed.problems.iter().any(|p| p.message.contains("is there twice"));
    assert!(!valid || !parsed.unreadable || twice, "{:?}", parsed.problems);
    compile(parsed);
}

fn judge(parsed: &Parsed) {
    let errors = parsed.problems.iter().filter(|p| p.severity == Severity::Error).count();
    if parsed.unreadable || parsed.lost || !parsed.rejected.is_empty() {
        assert!(errors > 0, "refused without a word: {parsed:?}");
    }
    if parsed.unreadable {
        assert!(parsed.objects.is_empty(), "nothing in an unreadable file counts");
    }
    for object in &parsed.objects {
        assert!(!object.metadata().name.is_empty());
    }
    for problem in &parsed.problems {
        assert!(!problem.message.is_empty());
        let told = problem.to_string();
        assert!(told.starts_with("fuzz."), "{told}");
    }
}

fn compile(parsed: Parsed) {
    let mut objects: Vec<(ObjectKey, Option<Resource>)> = Vec::new();
    for object in parsed.objects {
        let key = object.key();
        // As the store does: of two with one key the first counts.
        if objects.iter().all(|(known, _)| *known != key) {
            objects.push((key, Some(object)));
        }
    }
    if objects.is_empty() {
        return;
    }
    let mut compiler = Compiler::new(CompilerSettings::new("node-a"));
    let empty = fairlead_config::dump(compiler.snapshot());
    let apply = |compiler: &mut Compiler, objects: &[(ObjectKey, Option<Resource>)]| {
        compiler.apply(&Update { objects, fail_closed: None })
    };
    let (first, problems, _) = apply(&mut compiler, &objects);
    for problem in problems {
        let _ = problem.to_string();
    }
    let shown = fairlead_config::dump(&first);
    let (second, ..) = apply(&mut compiler, &objects);
    assert_eq!(content(fairlead_config::dump(&second)), content(shown), "the same again differs");
    for (_, object) in &mut objects {
        *object = None;
    }
    let (last, ..) = apply(&mut compiler, &objects);
    assert_eq!(content(fairlead_config::dump(&last)), content(empty), "something stayed behind");
}

/// A dump without what only counts.
fn content(mut dump: serde_json::Value) -> serde_json::Value {
    if let Some(map) = dump.as_object_mut() {
        map.remove("generation");
        map.remove("version");
    }
    dump
}

fn mesh(file: &Arc<PathBuf>, text: &str) {
    match mesh_config_from_file(file, text) {
        Ok((mesh, problems)) => {
            assert!(problems.iter().all(|p| p.severity == Severity::Warning));
            let settings = CompilerSettings { mesh, ..CompilerSettings::new("node-a") };
            let compiler = Compiler::new(settings);
            let wrong: Vec<_> = compiler.problems();
            assert!(wrong.is_empty(), "valid settings do not compile: {wrong:?}");
        }
        Err(problems) => assert!(problems.iter().any(|p| p.severity == Severity::Error)),
    }
}
