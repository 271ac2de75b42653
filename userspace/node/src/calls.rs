//! What may come at any moment, and is heard whatever the daemon waits for: signals, and the end of
//! a part that it cannot do without.

use tokio::sync::mpsc::Receiver;

use crate::signals::{Asked, Signals};
use crate::supervise::Fatal;

/// Where requests come from.
pub(crate) trait Asking {
    /// The next one.
    async fn next(&mut self) -> Asked;
}

impl Asking for Signals {
    async fn next(&mut self) -> Asked {
        Self::next(self).await
    }
}

/// Hears them.
pub(crate) struct Calls<'a, A = Signals> {
    pub(crate) signals: A,
    /// Of what is essential.
    pub(crate) ends: &'a mut Receiver<Fatal>,
    /// Reads the configuration again.
    pub(crate) reread: &'a (dyn Fn() + Sync),
}

impl<A: Asking> Calls<'_, A> {
    /// What comes of `work`. `None`: somebody has asked for the daemon's end before, and nothing more
    /// is done of it.
    ///
    /// # Errors
    /// An essential part has ended.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<Option<T>> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                // In this order: what ends because something else has says nothing new.
                biased;
                fatal = self.ends.recv() => return Err(failed(fatal)),
                asked = self.signals.next() => match asked {
                    Asked::End => return Ok(None),
                    Asked::Reread => {
                        tracing::info!("SIGHUP: reading the configuration again");
                        (self.reread)();
                    }
                },
                done = &mut work => return Ok(Some(done)),
            }
        }
    }
}

/// Why the daemon ends when a part of it has.
fn failed(fatal: Option<Fatal>) -> anyhow::Error {
    let fatal = fatal.map_or_else(String::new, |f| format!("{}: {}", f.who, f.how));
    anyhow::anyhow!(
        "an essential part of the daemon has ended ({fatal}); it ends too, and what the kernel \
         holds refuses connections until it is started again"
    )
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::supervise::Supervisor;

    impl Asking for mpsc::Receiver<Asked> {
        async fn next(&mut self) -> Asked {
            match self.recv().await {
                Some(asked) => asked,
                None => pending().await,
            }
        }
    }

    #[tokio::test]
    async fn signals_and_ends_are_heard_whatever_is_waited_for() {
        let (supervisor, mut ends) = Supervisor::new();
        let (ask, signals) = mpsc::channel(8);
        let rereads = AtomicU32::new(0);
        let reread = || {
            rereads.fetch_add(1, Ordering::Relaxed);
        };
        let mut calls = Calls { signals, ends: &mut ends, reread: &reread };
        assert_eq!(calls.during(ready(1)).await.unwrap(), Some(1));
        for asked in [Asked::Reread, Asked::Reread, Asked::End] {
            ask.send(asked).await.unwrap();
        }
        assert_eq!(calls.during(pending::<()>()).await.unwrap(), None);
        assert_eq!(rereads.load(Ordering::Relaxed), 2);
        supervisor.end("handover", "taken back".into());
        // What ends with it is ready, too.
        let error = calls.during(ready(1)).await.unwrap_err();
        assert!(error.to_string().contains("handover: taken back"), "{error}");
    }
}
