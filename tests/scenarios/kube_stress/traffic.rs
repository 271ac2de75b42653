//! Traffic that goes on through an event, and what came of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::Load;
use fairlead_tests::kube::KubeMesh;
use fairlead_tests::meanwhile::{Meanwhile, meanwhile};

use super::{MARKER, NS};

/// Seconds of one piece of load; pieces follow each other until the event is over.
const PIECE: &str = "--duration=5";

/// Where requests of the client go, and what they should get.
pub(super) struct Target {
    name: &'static str,
    path: &'static str,
    wanted: u16,
    how: &'static [&'static str],
}

impl Target {
    /// The Service, over connections that are kept.
    pub(super) fn kept() -> Self {
        let how = &["--rps=40", "--connections=4", "--reopen"];
        Self { name: "web, kept connections", path: "web", wanted: 200, how }
    }

    /// The Service, a connection for each request.
    pub(super) fn fresh() -> Self {
        let how = &["--rps=20", "--connections=2", "--fresh"];
        Self { name: "web, new connections", path: "web", wanted: 200, how }
    }

    /// What a policy denies.
    pub(super) fn guarded() -> Self {
        let how = &["--rps=20", "--connections=2", "--fresh"];
        Self { name: "server, denied path", path: "server/secret", wanted: 403, how }
    }

    /// For the length of a piece, every request gets what it should.
    pub(super) fn holds(&self, mesh: &KubeMesh) -> Result<()> {
        let load = self.piece(mesh)?;
        let right = load.status(self.wanted);
        ensure!(right > 0 && right == load.count("requests"), "{}: {}", self.name, load.0);
        Ok(())
    }

    fn piece(&self, mesh: &KubeMesh) -> Result<Load> {
        let url = format!("http://{}/{MARKER}", self.path);
        mesh.load(NS, "client", &url, &[&[PIECE], self.how].concat())
    }
}

/// What came of the requests to one target during an event.
#[derive(Default)]
pub(super) struct Row {
    pub(super) event: &'static str,
    pub(super) to: &'static str,
    took: Duration,
    pub(super) requests: u64,
    /// No answer, or another than was wanted.
    pub(super) failed: u64,
    /// Let through where a policy denies.
    pub(super) unchecked: u64,
    /// Kept connections that were closed while they were idle.
    reopened: u64,
    /// The slowest answer.
    slowest_ms: f64,
    pub(super) errors: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, to, took, requests, failed, unchecked, reopened, slowest_ms, errors } =
            self;
        write!(
            f,
            "| {event} | {to} | {:.0} s | {requests} requests | {failed} failed | {unchecked} unchecked \
             | {reopened} reopened | slowest {slowest_ms:.0} ms | {errors} |",
            took.as_secs_f64()
        )
    }
}

/// What happened to requests to each target while `work` was under way, and a piece after.
pub(super) fn during(
    mesh: &KubeMesh,
    event: &'static str,
    targets: &[Target],
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Row>> {
    let row = |target: &Target| Row { event, to: target.name, ..Row::default() };
    let piece = |target: &Target, row: &mut Row, _: Duration| {
        let load = target.piece(mesh)?;
        let right = load.status(target.wanted);
        row.requests += load.count("requests");
        row.failed += load.count("requests") - right;
        row.reopened += load.count("reopened");
        if target.wanted != 200 {
            row.unchecked += load.status(200);
        }
        row.slowest_ms = row.slowest_ms.max(load.figure("max_ms"));
        if right < load.count("requests") {
            row.errors.push_str(&format!("{} ", load.0));
        }
        Ok(())
    };
    let Meanwhile { took, mut rows, worked } = meanwhile(targets, row, piece, work)?;
    eprintln!("{event}: over after {took:?}");
    rows.iter_mut().for_each(|row| row.took = took);
    if rows.iter().any(|row| row.failed > 0) {
        let log = mesh.node_log(1)?;
        let ours = log.lines().filter(|line| line.contains(MARKER));
        let refused = ours.filter(|line| line.contains("HTTP/1.1\" 5"));
        refused.take(20).for_each(|line| eprintln!("{line}"));
    }
    // What failed meanwhile may say why.
    if worked.is_err() {
        rows.iter().for_each(|row| eprintln!("{row}"));
    }
    worked.context(event).map(|()| rows)
}
