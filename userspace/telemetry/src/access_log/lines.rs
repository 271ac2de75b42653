//! The same writer for lines of another kind: the daemon's own log must not hold traffic up
//! either when nobody reads its stderr.

use std::io;

use super::sink::{Pushed, Sink};
use crate::metrics::{Counter, Registry};

/// Lines that are written by a thread. When the queue is full they are dropped and counted.
pub struct Lines {
    sink: Sink,
    dropped: Counter,
    failed: Counter,
}

impl Lines {
    /// A writer of `file`: `/dev/stdout`, `/dev/stderr`, or a path to append to.
    #[must_use]
    pub fn to(file: &str) -> Self {
        let failed = Counter::default();
        Self { sink: Sink::start(file, failed.clone()), dropped: Counter::default(), failed }
    }

    /// Queues a line, which ends with its line feed. Never waits.
    pub fn write(&self, line: &[u8]) {
        if self.sink.queue().push(line) != Pushed::Queued {
            self.dropped.inc();
        }
    }

    /// Waits, two seconds at most, until everything queued so far has been written.
    pub fn flush(&self) {
        self.sink.flush();
    }

    /// Has `registry` export what was lost.
    pub fn export(&self, registry: &Registry) {
        registry.adopt(
            "fairlead_log_dropped_total",
            "Lines of the daemon's own log dropped because the queue to the writer was full.",
            &self.dropped,
        );
        registry.adopt(
            "fairlead_log_write_errors_total",
            "Failures to write the daemon's own log.",
            &self.failed,
        );
    }
}

impl io::Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        Lines::write(self, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
