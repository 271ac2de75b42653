//! Signals, as the daemon understands them.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that mean something.
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM or SIGINT: drain and end; when draining already, end at once.
    End,
    /// SIGHUP: read the configuration again.
    Reread,
}

impl Signals {
    /// Begins to listen: until here the defaults of the kernel apply.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reread,
        }
    }
}
