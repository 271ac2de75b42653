//! Work in the background that the data plane cannot do without: what panics is begun anew.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

/// Before work that has panicked is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Does `work` for ever: without it, connections would outlive the policy that admitted them, and
/// idle ones everything. A panic is one of ours, and the next turn may well do without it.
pub(crate) async fn keep_doing<F>(what: &'static str, mut work: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    loop {
        match AssertUnwindSafe(work()).catch_unwind().await {
            Ok(()) => tracing::error!(what, "housekeeping has ended; beginning anew"),
            Err(_) => tracing::error!(what, "housekeeping has panicked; beginning anew"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_panics_or_ends_is_begun_anew() {
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let mut turn = 0;
        let task = tokio::spawn(keep_doing("test", move || {
            turn += 1;
            let (turn, told) = (turn, told.clone());
            async move {
                told.send(turn).unwrap();
                match turn {
                    1 => panic!("one of ours"),
                    2 => {}
                    _ => std::future::pending().await,
                }
            }
        }));
        for turn in 1..=3 {
            assert_eq!(hears.recv().await, Some(turn));
        }
        assert!(!task.is_finished());
        task.abort();
    }
}
