//! The repository from a task's point of view: where things are, and how cargo is run.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Directory of the binaries of a profile.
pub(crate) fn profile_dir(profile: &str) -> PathBuf {
    target_dir().join(if profile == "dev" { "debug" } else { profile })
}

/// A cargo command at the root of the repository.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(args);
    // Set for this very program by the cargo that runs it; of no meaning to another one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    cargo
}

/// Runs a step that may take a while: says what it is, and how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    let start = Instant::now();
    heading(what);
    let status = command.status().with_context(|| what.to_owned())?;
    ensure!(status.success(), "{what}: {status}");
    eprintln!("   {what}: done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Says so when a directory's disk has less room than a run from nothing takes: a compiler that
/// finds no room does not say how much it would have needed.
pub(crate) fn note_room(dir: &Path, needed: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let free: u64 = text.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    if free < needed {
        eprintln!(
            "note: {:.1} GB are free in {}; with nothing built yet, a run takes {:.0} GB",
            free as f64 / 1e9,
            dir.display(),
            needed as f64 / 1e9
        );
    }
    Ok(())
}

/// A line that says what happens next.
pub(crate) fn heading(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1m== {what}\x1b[0m");
    } else {
        eprintln!("== {what}");
    }
}

/// Runs a command and shows its output line by line, handing each line to `look`; whether it
/// succeeded.
pub(crate) fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("no stdout")?;
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{line}");
        look(&line);
    }
    Ok(child.wait()?.success())
}

/// What this process may do.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    })
}
