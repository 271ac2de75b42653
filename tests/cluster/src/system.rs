//! Tools of the system: which a cluster needs, and running them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Commands that a cluster needs and the Debian packages that have them.
pub const TOOLS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
];

/// Where Debian keeps the CNI plugins (package `containernetworking-plugins`).
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Where a command is, if it is installed.
#[must_use]
pub fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).chain(standard);
    dirs.map(|dir| dir.join(command)).find(|file| file.is_file())
}

/// Packages of what is missing for a cluster; empty when nothing is.
#[must_use]
pub fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| find(tool).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !Path::new(CNI_PLUGINS).join("ptp").is_file() {
        missing.push("containernetworking-plugins");
    }
    missing.dedup();
    missing
}

/// A process by its id and start time, which together are unique; `None` when it is gone.
#[must_use]
pub fn identity_of(pid: u32) -> Option<String> {
    started(pid).map(|started| format!("{pid} {started}"))
}

/// When a process was started, in the kernel's ticks since it was; `None` when it is gone.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(')')?.1;
    // One that has ended and was not asked about yet is still listed.
    let ended = matches!(after.split_whitespace().next()?, "Z" | "X");
    let started = after.split_whitespace().nth(19)?.parse().ok()?;
    (!ended).then_some(started)
}

/// What a command is for people.
pub(crate) fn name_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end; what it printed, or an error with what it said.
///
/// # Errors
/// It cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| name_of(command))?;
    finish(command, &done)
}

/// Runs a command with `input`; what it printed.
///
/// # Errors
/// It cannot be started or fails.
pub fn output_with(command: &mut Command, input: &[u8]) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| name_of(command))?;
    let mut pipe = child.stdin.take().context("no stdin")?;
    // Written on a thread: a command that answers before it has read all would block us both.
    let done = std::thread::scope(|scope| {
        // A command that ends early says why by itself.
        scope.spawn(move || pipe.write_all(input).ok());
        child.wait_with_output()
    })?;
    finish(command, &done)
}

fn finish(command: &Command, done: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{}: {} {}{}", name_of(command), done.status, said.trim(), out.trim());
    }
    Ok(out)
}

/// Asks `attempt` until it gives a value, at most `limit` long. Errors count as "not yet"; the
/// last one is told when the time is over.
///
/// # Errors
/// The time is over.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let last = match attempt() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            match last {
                Some(error) => return Err(error.context(format!("{what}: not within {limit:?}"))),
                None => bail!("{what}: not within {limit:?}"),
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
