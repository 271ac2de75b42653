//! Traffic that flows while something happens, piece after piece, to several targets at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Traffic flows so long before anything happens.
const BEFORE: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug)]
pub struct Meanwhile<R> {
    /// How long it took, with the traffic before it.
    pub took: Duration,
    /// What came of the traffic to each target, in their order.
    pub rows: Vec<R>,
    /// What came of the work.
    pub worked: Result<()>,
}

/// Does `work` while pieces of traffic to each target follow each other, and one piece more. `row`
/// is what is known of a target before any of it; `piece` adds a piece to it, and is told when that
/// began, counted from the beginning of all.
///
/// # Errors
/// A piece of traffic could not be had.
pub fn meanwhile<T: Sync, R: Send>(
    targets: &[T],
    row: impl Fn(&T) -> R + Sync,
    piece: impl Fn(&T, &mut R, Duration) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<()>,
) -> Result<Meanwhile<R>> {
    let over = AtomicBool::new(false);
    let start = Instant::now();
    let pieces = |target: &T| -> Result<R> {
        let mut row = row(target);
        loop {
            let last = over.load(Ordering::Acquire);
            piece(target, &mut row, start.elapsed())?;
            if last {
                return Ok(row);
            }
        }
    };
    std::thread::scope(|scope| {
        let pieces = &pieces;
        let loads: Vec<_> =
            targets.iter().map(|target| scope.spawn(move || pieces(target))).collect();
        std::thread::sleep(BEFORE);
        let worked = work();
        let took = start.elapsed();
        over.store(true, Ordering::Release);
        let mut rows = Vec::new();
        for load in loads {
            let row = load.join().map_err(|_| anyhow::anyhow!("a load panicked"))?;
            rows.push(row.context("load")?);
        }
        Ok(Meanwhile { took, rows, worked })
    })
}
