//! Changes of endpoints at a rate, and when nodes heard of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Arguments;
use crate::api::Api;
use crate::legs::{Legs, now};
use crate::node::Nodes;
use crate::setup::{slice, slice_path};

/// Writes at a time: enough to keep the API server busy; more would only wait there.
const AT_ONCE: usize = 64;
/// How long the last changes may take to arrive.
const SETTLE: Duration = Duration::from_secs(60);

/// When each change was written and who has heard of it.
pub(crate) struct Ledger {
    /// Changes by service, in order; the first has the number 1.
    changes: Vec<Mutex<Vec<Change>>>,
    legs: Mutex<Legs>,
    heard: AtomicU64,
    numbers: Vec<AtomicU32>,
}

#[derive(Clone, Copy)]
struct Change {
    written: u64,
    answered: Option<u64>,
}

impl Ledger {
    pub(crate) fn new(services: usize) -> Self {
        Self {
            changes: (0..services).map(|_| Mutex::default()).collect(),
            legs: Mutex::default(),
            heard: AtomicU64::new(0),
            numbers: (0..services).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(crate) fn services(&self) -> usize {
        self.changes.len()
    }

    /// A node that knew of the change `last` has `sequence` now: it has all between them too. The
    /// controller knew at `event`.
    pub(crate) fn heard(&self, service: usize, last: u32, sequence: u32, event: u64, now: u64) {
        let Some(changes) = self.changes.get(service) else { return };
        let changes = changes.lock();
        let mut legs = self.legs.lock();
        for number in last + 1..=sequence {
            let Some(change) = changes.get(number as usize - 1) else { continue };
            self.heard.fetch_add(1, Ordering::Relaxed);
            legs.heard(change.written, change.answered, event, now);
        }
    }

    /// The watch beside the controller's has brought a change.
    pub(crate) fn told(&self, service: usize, sequence: u32, now: u64) {
        let Some(changes) = self.changes.get(service) else { return };
        let change =
            (sequence as usize).checked_sub(1).and_then(|n| changes.lock().get(n).copied());
        if let Some(change) = change {
            self.legs.lock().told(change.written, change.answered, now);
        }
    }
}

pub(crate) struct Outcome {
    pub(crate) made: u64,
    pub(crate) writing: Duration,
    pub(crate) legs: Legs,
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
    // Two writes of one service at a time might be stored in another order.
    let places = Arc::new(Semaphore::new(AT_ONCE.min(ledger.services() / 2).max(1)));
    let begin = Instant::now();
    let count = u64::from(rate) * arguments.seconds;
    let mut made = 0;
    let mut writes = JoinSet::new();
    let mut expected = 0;
    for number in 0..count {
        let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let place = Arc::clone(&places).acquire_owned().await?;
        // An API server that cannot keep up is asked for no longer than it was to be.
        if begin.elapsed().as_secs() >= arguments.seconds {
            break;
        }
        made += 1;
        // A walk through all services that takes neighbours apart.
        let service = (number as usize * 7919 + rate as usize) % ledger.services();
        expected += nodes.holders(service) as u64;
        let sequence = ledger.numbers[service].fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(sequence < 1 << 24, "too many changes for an address");
        let address = format!("10.{}.{}.{}", sequence >> 16, (sequence >> 8) & 255, sequence & 255);
        let body = serde_json::to_vec(&slice(service, Some(&address), arguments))?.into();
        // Nobody mistypes fields here: what the API server does for the writer is not what is measured.
        let path = format!("{}?fieldValidation=Ignore", slice_path(service, arguments));
        let (client, ledger) = (api.client.clone(), Arc::clone(ledger));
        writes.spawn(async move {
            let written = now();
            ledger.changes[service].lock().push(Change { written, answered: None });
            let (kind, accept) = ("application/json", crate::client::METADATA_ONLY);
            client.send(Method::PUT, &path, kind, accept, body).await?;
            let answered = now();
            if let Some(change) = ledger.changes[service].lock().get_mut(sequence as usize - 1) {
                change.answered = Some(answered);
            }
            ledger.legs.lock().answer.push(answered.saturating_sub(written));
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
    ensure!(made > 0, "no change was made");
    Ok(Outcome { made, writing, legs: std::mem::take(&mut *ledger.legs.lock()) })
}
