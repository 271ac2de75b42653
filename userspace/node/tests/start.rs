//! What the binary says when it cannot start: each time the next step. None of this needs rights:
//! it ends before the kernel is touched.
#![expect(clippy::unwrap_used, reason = "tests say what failed by failing there")]

use std::net::TcpListener;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-node"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FAIRLEAD_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
}

fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} started");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn help_and_version() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for part in ["Examples:", "--config-dir", "SIGTERM", "FAIRLEAD_CA_DIR"] {
        assert!(text.contains(part), "{part} is missing in --help");
    }
    let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
    assert_eq!(version.trim(), format!("fairlead-node {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn failures_say_what_to_do() {
    let error = fails(&["--admin=127.0.0.1:0", "--config-dir=/nowhere/at/all"]);
    assert!(error.contains("/nowhere/at/all") && error.contains("--config-dir"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = fails(&["--admin", &address, "--config-dir=/"]);
    assert!(error.contains(&address) && error.contains("--admin"), "{error}");

    assert!(fails(&["--log-level=loud"]).contains("--log-level"));
    assert!(fails(&["--admin=0.0.0.0:1"]).contains("loopback"));
    assert!(fails(&["--workers=0"]).contains("--workers"));
    assert!(fails(&["--confg-dir=/"]).contains("--config-dir"), "a misspelt flag has a suggestion");
    assert!(fails(&["--settings=/nowhere"]).contains("/nowhere"));
}
