//! New connections while something happens, every one counted: those that policies allow, and
//! those that they do not.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::inside::Inside;
use fairlead_tests::meanwhile::{Meanwhile, meanwhile};
use fairlead_tests::process::binary;
use fairlead_tests::{Load, client::last_json, eventually};

/// Pieces of load follow each other until the event is over: so many seconds each.
const PIECE: u64 = 2;
/// Connections by which it is seen whether all is well.
const FEW: u64 = 10;
/// What must be well again is so within, once everything that was away is back.
const WELL: Duration = Duration::from_secs(10);

/// What is to become of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They succeed.
    Allowed,
    /// A policy forbids them: 403, or no answer.
    Denied,
    /// Whatever comes: their server is away.
    Away,
}

/// Connections of one kind.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) what: String,
    pub(super) from: Inside,
    pub(super) url: String,
    pub(super) verdict: Verdict,
    /// Connections a second; 0: as fast as they go.
    pub(super) rate: u32,
}

/// What came of connections during an event.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: String,
    pub(super) to: String,
    pub(super) verdict: Verdict,
    pub(super) took: Duration,
    pub(super) connections: u64,
    /// Answered with 200.
    pub(super) passed: u64,
    /// First and last connection without an answer, from the beginning on.
    pub(super) failing: Option<(Duration, Duration)>,
    errors: String,
}

impl Row {
    pub(super) fn failed(&self) -> u64 {
        self.connections - self.passed
    }

    /// For how long connections failed.
    pub(super) fn lasted(&self) -> Duration {
        self.failing.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first))
    }

    fn print(&self) {
        let Self { event, to, took, connections, passed, .. } = self;
        let outcome = match self.verdict {
            Verdict::Denied => format!("{passed} passed"),
            Verdict::Allowed | Verdict::Away => {
                let lasted = self.lasted().as_secs_f64();
                format!("{} failed within {lasted:.1} s {}", self.failed(), self.errors)
            }
        };
        let took = took.as_secs_f64();
        eprintln!("| {event} | {to} | {took:.1} s | {connections} new connections | {outcome} |");
    }

    /// Nothing failed that is allowed, nothing passed that is not, and there was enough to see it.
    pub(super) fn unharmed(&self) -> Result<()> {
        self.checked()?;
        let failed = self.failed();
        let harmed = self.verdict == Verdict::Allowed && failed > 0;
        ensure!(!harmed, "{}: {failed} failed to {}: {}", self.event, self.to, self.errors);
        Ok(())
    }

    /// Nothing passed that is not allowed.
    pub(super) fn checked(&self) -> Result<()> {
        let Self { event, to, connections, passed, .. } = self;
        let enough = self.verdict == Verdict::Away || *connections > 50;
        ensure!(enough, "{event}: {connections} connections to {to} say nothing");
        let open = self.verdict == Verdict::Denied && *passed > 0;
        ensure!(!open, "{event}: {passed} passed to {to}");
        Ok(())
    }
}

/// One run of the load generator.
fn load(target: &Target, more: &[String]) -> Result<Load> {
    let program: PathBuf = binary("fairlead-apps", "FAIRLEAD_TEST_APPS")?;
    let mut command = target.from.command(&program);
    command.args(["load", &target.url, "--connections=2", "--fresh", "--timeout-ms=5000"]);
    let done = command.args(more).output().context("running the load")?;
    let told = String::from_utf8_lossy(&done.stdout);
    Ok(Load(last_json(&told).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?))
}

/// What happens to new connections to each target while `work` is under way, and a piece after.
pub(super) fn during(
    event: &str,
    targets: &[Target],
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Row>> {
    let row = |target: &Target| Row {
        event: event.to_owned(),
        to: target.what.clone(),
        verdict: target.verdict,
        took: Duration::ZERO,
        connections: 0,
        passed: 0,
        failing: None,
        errors: String::new(),
    };
    let Meanwhile { took, mut rows, worked } = meanwhile(targets, row, piece, work)?;
    for row in &mut rows {
        row.took = took;
        row.print();
    }
    worked.with_context(|| event.to_owned()).map(|()| rows)
}

fn piece(target: &Target, row: &mut Row, begun: Duration) -> Result<()> {
    let told = load(target, &[format!("-d{PIECE}"), format!("--rps={}", target.rate)])?;
    row.connections += told.count("requests");
    row.passed += told.status(200);
    if told.status(200) < told.count("requests") && target.verdict != Verdict::Denied {
        row.errors.push_str(&format!(" {} {}", told.errors(), told.0["statuses"]));
    }
    if let [Some(first), Some(last)] = [0, 1].map(|at| told.0["failures_ms"][at].as_u64()) {
        let [first, last] = [first, last].map(|ms| begun + Duration::from_millis(ms));
        row.failing = Some((row.failing.map_or(first, |(earlier, _)| earlier), last));
    }
    Ok(())
}

/// Waits until everything is as it should be.
pub(super) fn well(targets: &[Target]) -> Result<()> {
    let start = Instant::now();
    for target in targets.iter().filter(|target| target.verdict != Verdict::Away) {
        eventually(&format!("all is well: {}", target.what), WELL, || {
            let told = load(target, &[format!("--requests={FEW}")])?;
            let expected = if target.verdict == Verdict::Allowed { FEW } else { 0 };
            ensure!(told.status(200) == expected, "{}", told.0);
            Ok(Some(()))
        })?;
    }
    eprintln!("all was well {:?} later", start.elapsed());
    Ok(())
}
