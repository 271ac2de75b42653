//! `fairlead validate` as it is called: report, exit code, formats.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fairlead-cli-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn validate(path: &Path, more: &[&str]) -> (i32, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_fairlead"))
        .arg("validate")
        .arg(path)
        .args(more)
        .output()
        .unwrap();
    let text =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

const GOOD: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a}\n";
const WARNED: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
const BAD: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews, namespace: prod}\nspec:\n  hosts: [reviews]\n  http:\n  - route: [{destination: {host: reviews}, weigth: 10}]\n";

#[test]
fn good_files() {
    let dir = TempDir::new("good");
    dir.write("a.yaml", GOOD);
    let (code, text) = validate(&dir.0, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("1 file, 1 good object: 0 errors, 0 warnings\nno Service"), "{text}");
    dir.write("b.yaml", WARNED);
    let (code, text) = validate(&dir.0, &[]);
    assert!(code == 0 && text.contains("1 warning\n"), "{text}");
    assert_eq!(validate(&dir.0, &["--strict"]).0, 1);
}

#[test]
fn a_bad_file_in_every_format() {
    let dir = TempDir::new("bad");
    dir.write("a.yaml", GOOD);
    let file = dir.write("b.yaml", BAD);
    let place = format!("{}:7", file.display());

    let (code, text) = validate(&dir.0, &[]);
    assert_eq!(code, 1, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("SEVERITY  FILE "), "{text}");
    for part in [
        "error",
        &place,
        "VirtualService prod/reviews",
        "spec.http[0].route[0].weigth",
        "this field is not known (did you mean weight?)",
    ] {
        assert!(lines[1].contains(part), "{part}: {text}");
    }
    assert_eq!(lines[0].find("FIELD"), lines[1].find("spec.http"), "{text}");
    assert!(lines.contains(&"2 files, 1 good object: 1 error, 0 warnings"), "{text}");

    let (code, text) = validate(&dir.0, &["-o", "json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, value["errors"].as_u64(), value["objects"].as_u64()), (1, Some(1), Some(1)));
    let problem = &value["problems"][0];
    assert_eq!(problem["severity"], "error");
    assert_eq!(problem["field"], "spec.http[0].route[0].weigth");
    assert_eq!(problem["line"], 7);
    assert_eq!(problem["object"]["name"], "reviews");
    assert_eq!(problem["allowed"], "did you mean weight?");

    let (code, text) = validate(&dir.0, &["-o", "yaml"]);
    assert_eq!(code, 1);
    assert!(text.contains("  field: \"spec.http[0].route[0].weigth\"\n"), "{text}");
}

/// What makes traffic fail is told in advance, and is an error where a service is there for it; in the
/// same words, and once.
#[test]
fn what_makes_traffic_fail() {
    let dir = TempDir::new("refused");
    dir.write(
        "route.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
         spec: {hosts: [web], http: [{redirect: {uri: /x}}]}\n",
    );
    dir.write(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\n\
         spec: {host: web, trafficPolicy: {tls: {mode: SIMPLE}}}\n",
    );
    let problems = |code: i32| -> Vec<Value> {
        let (found, text) = validate(&dir.0, &["-o", "json"]);
        assert_eq!(found, code, "{text}");
        let report: Value = serde_json::from_str(&text).unwrap();
        report["problems"].as_array().unwrap().clone()
    };
    let advance = problems(0);
    assert_eq!(advance.len(), 2, "{advance:?}");
    for (problem, field) in
        advance.iter().zip(["spec.http[0].redirect", "spec.trafficPolicy.tls.mode"])
    {
        let said = (&problem["severity"], &problem["effect"], &problem["field"]);
        assert_eq!(said, (&"warning".into(), &"refused".into(), &field.into()));
    }
    dir.write(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
         spec: {ports: [{name: http, port: 80}]}\n",
    );
    let mut found = problems(1);
    for problem in &mut found {
        assert_eq!(problem["severity"], "error");
        problem["severity"] = "warning".into();
    }
    assert_eq!(found, advance);
}

/// Routes alone may refer to what is elsewhere; with the services there, a missing subset is told
/// with its line.
#[test]
fn references_within_a_mesh() {
    let dir = TempDir::new("references");
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: prod}\nspec:\n  hosts: [web]\n  http:\n  - route:\n    - destination: {host: web, subset: v9}\n";
    let file = dir.write("route.yaml", route);
    let (code, text) = validate(&dir.0, &[]);
    assert_eq!(code, 0, "{text}");
    dir.write("mesh.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: prod}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80, name: http}]}\n");
    let (code, text) = validate(&dir.0, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("{}:8 ", file.display())), "{text}");
    assert!(text.contains("spec.http[0].route[0].destination.subset"), "{text}");
}

#[test]
fn usage() {
    let dir = TempDir::new("usage");
    let (code, text) = validate(&dir.0.join("missing"), &[]);
    assert!(code == 2 && text.contains("is not there"), "{text}");
    assert_eq!(validate(&dir.0, &["-o", "xml"]).0, 2);
    let (code, text) = validate(&dir.0, &["--help"]);
    assert!(code == 0 && text.contains("Examples:") && text.contains("Exit codes"), "{text}");
    let none = Command::new(env!("CARGO_BIN_EXE_fairlead")).arg("validate").output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}
