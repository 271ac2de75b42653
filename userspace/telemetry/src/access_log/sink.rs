//! The way of a line to its file: a queue bounded in bytes, and a thread that writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::metrics::Counter;

/// Bytes that wait for the writer at most; beyond it lines are dropped and counted.
pub(crate) const MAX_QUEUED: usize = 4 * 1024 * 1024;

/// The writer lets lines gather this long, so that a busy log is written in few large pieces.
const GATHER: Duration = Duration::from_millis(10);

/// How often the writer looks whether the file was renamed or removed (logrotate).
const REOPEN_CHECK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    queued: Vec<u8>,
    /// The writer is at work on what it took.
    writing: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    to_writer: Condvar,
    written: Condvar,
}

/// Where lines are put. Cloning shares it; without a [`Sink`] it takes nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue(Option<Arc<Shared>>);

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It will be written.
    Queued,
    /// There is no room for it.
    Full,
    /// Nobody writes any more.
    Closed,
}

impl Queue {
    /// Queues a line. Never waits.
    pub(crate) fn push(&self, line: &[u8]) -> Pushed {
        let Some(shared) = &self.0 else { return Pushed::Closed };
        let mut state = shared.state.lock();
        if state.closed {
            return Pushed::Closed;
        }
        if state.queued.len() + line.len() > MAX_QUEUED {
            return Pushed::Full;
        }
        let wake = state.queued.is_empty() && !state.writing;
        state.queued.extend_from_slice(line);
        drop(state);
        if wake {
            shared.to_writer.notify_one();
        }
        Pushed::Queued
    }
}

/// The writer of one file. Dropping it lets the thread write what is queued and end.
pub(crate) struct Sink {
    shared: Arc<Shared>,
}

impl Sink {
    /// Starts a writer of a file, `/dev/stdout` or `/dev/stderr`. A file that cannot be opened is tried again with every piece of text, and
    /// counted: the log must not keep traffic from flowing.
    pub(crate) fn start(path: &str, failed: Counter) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            target: Target::new(path),
            shared: Arc::clone(&shared),
            failed,
            complained: false,
        };
        if let Err(error) =
            std::thread::Builder::new().name("log-writer".into()).spawn(move || writer.run())
        {
            shared.state.lock().closed = true;
            tracing::error!(%error, "no thread for the access log: nothing will be logged");
        }
        Self { shared }
    }

    pub(crate) fn queue(&self) -> Queue {
        Queue(Some(Arc::clone(&self.shared)))
    }

    /// Waits, two seconds at most, until everything queued has been written.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut state = self.shared.state.lock();
        while (state.writing || !state.queued.is_empty()) && !state.closed {
            if self.shared.written.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.to_writer.notify_one();
    }
}

struct Writer {
    target: Target,
    shared: Arc<Shared>,
    failed: Counter,
    complained: bool,
}

impl Writer {
    fn run(mut self) {
        let mut piece = Vec::new();
        loop {
            let mut state = self.shared.state.lock();
            state.writing = false;
            self.shared.written.notify_all();
            while state.queued.is_empty() {
                if state.closed {
                    return;
                }
                self.shared.to_writer.wait(&mut state);
            }
            state.writing = true;
            std::mem::swap(&mut piece, &mut state.queued);
            drop(state);
            self.write(&piece);
            piece.clear();
            piece.shrink_to(MAX_QUEUED / 16);
            std::thread::sleep(GATHER);
        }
    }

    fn write(&mut self, piece: &[u8]) {
        match self.target.write(piece) {
            Ok(()) => self.complained = false,
            Err(error) => {
                self.failed.inc();
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::error!(
                        %error,
                        "access log cannot be written; lines are lost until it can"
                    );
                }
            }
        }
    }
}

enum Target {
    Stdout,
    Stderr,
    File { path: PathBuf, open: Option<(File, u64, u64)>, checked: Instant },
}

impl Target {
    fn new(path: &str) -> Self {
        match path {
            // Not opened by path: that fails where stdout is a socket (systemd), and would
            // truncate or interleave where it is a file.
            "/dev/stdout" => Self::Stdout,
            "/dev/stderr" => Self::Stderr,
            path => Self::File { path: path.into(), open: None, checked: Instant::now() },
        }
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(piece).and_then(|()| out.flush())
            }
            Self::Stderr => io::stderr().lock().write_all(piece),
            Self::File { path, open, checked } => {
                if checked.elapsed() >= REOPEN_CHECK {
                    *checked = Instant::now();
                    let moved = match (&open, std::fs::metadata(&*path)) {
                        (Some((_, dev, ino)), Ok(now)) => (now.dev(), now.ino()) != (*dev, *ino),
                        _ => true,
                    };
                    if moved {
                        *open = None;
                    }
                }
                if open.is_none() {
                    let file = OpenOptions::new().create(true).append(true).open(&*path)?;
                    let meta = file.metadata()?;
                    *open = Some((file, meta.dev(), meta.ino()));
                }
                match open.as_mut() {
                    Some((file, _, _)) => file.write_all(piece),
                    None => Ok(()),
                }
            }
        }
    }
}
