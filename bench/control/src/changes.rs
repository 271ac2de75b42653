//! Changes of endpoints at a rate, and when nodes heard of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Arguments;
use crate::api::Api;
use crate::node::Nodes;
use crate::setup::slice_path;

/// Writes at a time.
const AT_ONCE: usize = 256;
/// How long the last changes may take to arrive.
const SETTLE: Duration = Duration::from_secs(60);

/// When each change was written and who has heard of it.
pub(crate) struct Ledger {
    /// Changes by service, in order; the first has the number 1.
    changes: Vec<Mutex<Vec<Change>>>,
    from_write: Mutex<Vec<Duration>>,
    from_answer: Mutex<Vec<Duration>>,
    heard: AtomicU64,
    numbers: Vec<AtomicU32>,
}

#[derive(Clone, Copy)]
struct Change {
    written: Instant,
    answered: Option<Instant>,
    heard: u32,
}

impl Ledger {
    pub(crate) fn new(services: usize) -> Self {
        Self {
            changes: (0..services).map(|_| Mutex::default()).collect(),
            from_write: Mutex::default(),
            from_answer: Mutex::default(),
            heard: AtomicU64::new(0),
            numbers: (0..services).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(crate) fn services(&self) -> usize {
        self.changes.len()
    }

    /// A node that knew of the change `last` has `sequence` now: it has all between them too.
    pub(crate) fn heard(&self, service: usize, last: u32, sequence: u32, now: Instant) {
        let Some(changes) = self.changes.get(service) else { return };
        let mut changes = changes.lock();
        for number in last + 1..=sequence {
            let Some(change) = changes.get_mut(number as usize - 1) else { continue };
            change.heard += 1;
            self.heard.fetch_add(1, Ordering::Relaxed);
            self.from_write.lock().push(now.saturating_duration_since(change.written));
            // The watch may be faster than the answer.
            let since =
                change.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            self.from_answer.lock().push(since);
        }
    }
}

/// Sorted times.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Milliseconds below which that part of all is.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let index = (last as f64 * quantile).round() as usize;
        self.0.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }

    fn take(of: &Mutex<Vec<Duration>>) -> Self {
        let mut times = std::mem::take(&mut *of.lock());
        times.sort_unstable();
        Self(times)
    }
}

pub(crate) struct Outcome {
    pub(crate) made: u64,
    pub(crate) writing: Duration,
    pub(crate) from_write: Times,
    pub(crate) from_answer: Times,
}

/// Makes changes at `rate` and waits until every node that needs them has heard of all.
pub(crate) async fn run(
    api: &Api,
    arguments: &Arguments,
    rate: u32,
    ledger: &Arc<Ledger>,
    nodes: &Nodes,
) -> Result<Outcome> {
    let heard_before = ledger.heard.load(Ordering::Relaxed);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let begin = Instant::now();
    let count = u64::from(rate) * arguments.seconds;
    let mut writes = JoinSet::new();
    let mut expected = 0;
    for number in 0..count {
        let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        // A walk through all services that takes neighbours apart.
        let service = (number as usize * 7919 + rate as usize) % ledger.services();
        expected += nodes.holders(service) as u64;
        let place = Arc::clone(&places).acquire_owned().await?;
        let sequence = ledger.numbers[service].fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(sequence < 1 << 24, "too many changes for an address");
        let address = format!("10.{}.{}.{}", sequence >> 16, (sequence >> 8) & 255, sequence & 255);
        let patch =
            json!([{"op": "replace", "path": "/endpoints/0/addresses/0", "value": address}]);
        let path = slice_path(service, arguments);
        let (client, ledger) = (api.client.clone(), Arc::clone(ledger));
        writes.spawn(async move {
            let written = Instant::now();
            ledger.changes[service].lock().push(Change { written, answered: None, heard: 0 });
            let request = http::Request::patch(path)
                .header("content-type", "application/json-patch+json")
                .body(serde_json::to_vec(&patch)?)?;
            client.request_text(request).await?;
            if let Some(change) = ledger.changes[service].lock().get_mut(sequence as usize - 1) {
                change.answered = Some(Instant::now());
            }
            drop(place);
            anyhow::Ok(())
        });
        while let Some(done) = writes.try_join_next() {
            done??;
        }
    }
    while let Some(done) = writes.join_next().await {
        done??;
    }
    let writing = begin.elapsed();
    let deadline = Instant::now() + SETTLE;
    loop {
        nodes.check()?;
        let heard = ledger.heard.load(Ordering::Relaxed) - heard_before;
        if heard >= expected {
            break;
        }
        ensure!(Instant::now() < deadline, "{heard} of {expected} changes have arrived");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Outcome {
        made: count,
        writing,
        from_write: Times::take(&ledger.from_write),
        from_answer: Times::take(&ledger.from_answer),
    })
}
