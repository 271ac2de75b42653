//! New connections while something happens, every one counted: those that policies allow, and
//! those that they do not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::inside::Inside;
use fairlead_tests::meanwhile::{Meanwhile, meanwhile};
use fairlead_tests::process::binary;
use fairlead_tests::{Load, client::last_json, eventually};

use super::place::Place;
use super::{MARKER, NS};

/// Pieces of load follow each other until the event is over: so many seconds each.
const PIECE: u64 = 2;
/// This share of the rate that is wanted has to be achieved where nothing fails.
const ACHIEVED: f64 = 0.1;
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

/// Who speaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) node: usize,
    pub(super) namespace: &'static str,
    pub(super) pod: &'static str,
}

impl Caller {
    /// Whether what it begins is captured.
    pub(super) fn in_mesh(self) -> bool {
        self.namespace == NS
    }
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Tcp,
}

/// Connections of one kind.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) what: String,
    pub(super) caller: Caller,
    pub(super) from: Inside,
    pub(super) protocol: Protocol,
    /// The server.
    pub(super) to: Arc<Place>,
    pub(super) verdict: Verdict,
    /// Connections a second; 0: as fast as they go.
    pub(super) rate: u32,
    /// Side by side.
    pub(super) side_by_side: u32,
    /// How many connections were begun so far.
    pub(super) begun: Arc<AtomicU64>,
}

impl Target {
    /// Where the server is now.
    pub(super) fn url(&self) -> String {
        let ip = self.to.ip();
        match self.protocol {
            Protocol::Tcp => format!("tcp://{ip}:9000"),
            // Who is outside the mesh speaks in plaintext.
            Protocol::Http if self.verdict == Verdict::Denied => format!("http://{ip}:8080/"),
            Protocol::Http => format!("http://{ip}:8080/{MARKER}"),
        }
    }

    /// Those of a load that were answered by the server. Another pod may have its address when it
    /// has moved, and be open to everybody.
    fn passed(&self, load: &Load) -> u64 {
        load.pod(self.to.pod())
    }
}

/// What came of connections during an event.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: String,
    pub(super) to: String,
    pub(super) verdict: Verdict,
    pub(super) took: Duration,
    pub(super) connections: u64,
    /// Answered by the server.
    pub(super) passed: u64,
    /// Connections a second that were wanted, and that there were while the load ran.
    asked: u32,
    rate: f64,
    /// First and last connection without an answer, from the beginning on.
    pub(super) failing: Option<(Duration, Duration)>,
    /// How often connections failed for which reason.
    reasons: BTreeMap<String, u64>,
}

impl Row {
    pub(super) fn failed(&self) -> u64 {
        self.connections - self.passed
    }

    /// For how long connections failed.
    pub(super) fn lasted(&self) -> Duration {
        self.failing.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first))
    }

    fn reasons(&self) -> String {
        let each = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
        let all = each.collect::<Vec<_>>().join(", ");
        if all.is_empty() { all } else { format!(": {all}") }
    }

    fn note(&mut self, load: &Load) {
        let of = |field: &str| load.0[field].as_object().cloned().unwrap_or_default();
        let errors = of("errors").into_iter();
        let statuses = of("statuses").into_iter().filter(|(status, _)| status != "200");
        let statuses = statuses.map(|(status, count)| (format!("status {status}"), count));
        for (reason, count) in errors.chain(statuses) {
            *self.reasons.entry(reason).or_default() += count.as_u64().unwrap_or(0);
        }
    }

    fn print(&self) {
        let Self { event, to, took, connections, passed, rate, .. } = self;
        let outcome = match self.verdict {
            Verdict::Denied => format!("{passed} passed{}", self.reasons()),
            Verdict::Allowed | Verdict::Away => {
                let lasted = self.lasted().as_secs_f64();
                format!("{} failed within {lasted:.1} s{}", self.failed(), self.reasons())
            }
        };
        let took = took.as_secs_f64();
        eprintln!(
            "| {event} | {to} | {took:.1} s | {connections} new connections, {rate:.0}/s | {outcome} |"
        );
    }

    /// Nothing failed that is allowed, nothing passed that is not, and there was enough to see it.
    pub(super) fn unharmed(&self) -> Result<()> {
        self.checked()?;
        let failed = self.failed();
        let harmed = self.verdict == Verdict::Allowed && failed > 0;
        ensure!(!harmed, "{}: {failed} failed to {}{}", self.event, self.to, self.reasons());
        let Self { event, to, rate, asked, .. } = self;
        let slow = self.verdict == Verdict::Allowed && *rate < f64::from(*asked) * ACHIEVED;
        ensure!(!slow, "{event}: {rate:.0} connections/s to {to} of {asked} say little");
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
    let side_by_side = format!("--connections={}", target.side_by_side);
    command.args(["load", &target.url(), &side_by_side, "--fresh", "--timeout-ms=5000"]);
    let done = command.args(more).output().context("running the load")?;
    let told = String::from_utf8_lossy(&done.stdout);
    let load =
        Load(last_json(&told).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?);
    target.begun.fetch_add(load.count("requests"), Ordering::Relaxed);
    Ok(load)
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
        asked: target.rate,
        rate: 0.0,
        failing: None,
        reasons: BTreeMap::new(),
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
    // The rate so far, by the length of the pieces.
    let before = if row.rate > 0.0 { row.connections as f64 / row.rate } else { 0.0 };
    row.connections += told.count("requests");
    row.rate = row.connections as f64 / (before + told.figure("seconds")).max(f64::EPSILON);
    row.passed += target.passed(&told);
    row.note(&told);
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
            ensure!(target.passed(&told) == expected, "{}", told.0);
            Ok(Some(()))
        })?;
    }
    eprintln!("all was well {:?} later", start.elapsed());
    Ok(())
}
