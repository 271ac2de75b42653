//! The access log: Istio's text and JSON formats, or one of the operator's own.
//!
//! A format is compiled once per change of configuration. The data path asks
//! [`AccessLog::active`] (an atomic load) and gets `None` where no log is configured; otherwise it
//! keeps the [`LogFormat`] with the request, lets it [capture](LogFormat::capture_request) the
//! few headers that the format mentions, and at the end passes a [`LogRecord`].
//!
//! ```no_run
//! # use fairlead_telemetry::{LogRecord, Telemetry};
//! # use http::HeaderMap;
//! # fn f(telemetry: &Telemetry, request: &HeaderMap, response: &HeaderMap) {
//! if let Some(log) = telemetry.access_log().active() {
//!     let request_headers = log.capture_request(request); // when the request begins
//!     let response_headers = log.capture_response(response); // when its response begins
//!     let record = LogRecord {
//!         method: Some("GET"),
//!         path: Some("/"),
//!         response_code: Some(200),
//!         request_headers,
//!         response_headers,
//!         ..LogRecord::default()
//!     };
//!     telemetry.access_log().write(&log, &record); // when it has ended
//! }
//! # }
//! ```

mod format;
mod lines;
mod operator;
mod record;
mod render;
mod sink;
mod time;

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

pub use format::{DEFAULT_TEXT_FORMAT, FormatError, LogFormat};
pub use lines::Lines;
pub use record::{Captured, LogRecord};
use sink::{Pushed, Sink};

use crate::metrics::{Counter, Registry};

/// How lines are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// One line of text (`accessLogEncoding: TEXT`).
    #[default]
    Text,
    /// One JSON object a line (`accessLogEncoding: JSON`).
    Json,
}

/// What MeshConfig says of the access log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// `accessLogFile`; empty: no access log.
    pub file: String,
    /// `accessLogEncoding`.
    pub encoding: Encoding,
    /// `accessLogFormat`; empty: Istio's default of the encoding.
    pub format: String,
}

struct Configured {
    config: AccessLogConfig,
    sink: Sink,
}

/// The node's access log.
pub struct AccessLog {
    format: ArcSwapOption<LogFormat>,
    configured: Mutex<Option<Configured>>,
    lines: Counter,
    dropped: Counter,
    failed: Counter,
}

impl AccessLog {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            format: ArcSwapOption::empty(),
            configured: Mutex::new(None),
            lines: registry.counter("fairlead_access_log_lines_total", "Access log lines.", &[]),
            dropped: registry.counter(
                "fairlead_access_log_dropped_total",
                "Access log lines dropped because the queue to the writer was full.",
                &[],
            ),
            failed: registry.counter(
                "fairlead_access_log_write_errors_total",
                "Failures to open or write the access log file.",
                &[],
            ),
        }
    }

    /// Follows the configuration. What is already queued is still written where it was meant to
    /// go; a configuration equal to the present one changes nothing.
    ///
    /// # Errors
    /// [`FormatError`]: the format is not valid; the log stays as it is.
    pub fn configure(&self, config: &AccessLogConfig) -> Result<(), FormatError> {
        let mut configured = self.configured.lock();
        if configured.as_ref().is_some_and(|c| c.config == *config) {
            return Ok(());
        }
        if config.file.is_empty() {
            self.format.store(None);
            *configured = None;
            return Ok(());
        }
        let mut format = LogFormat::compile(config.encoding, &config.format)?;
        let sink = match configured.take() {
            Some(before) if before.config.file == config.file => before.sink,
            _ => Sink::start(&config.file, self.failed.clone()),
        };
        format.sink = sink.queue();
        *configured = Some(Configured { config: config.clone(), sink });
        self.format.store(Some(Arc::new(format)));
        Ok(())
    }

    /// The present format, or `None` where nothing is logged.
    #[must_use]
    pub fn active(&self) -> Option<Arc<LogFormat>> {
        self.format.load_full()
    }

    /// Renders a line and queues it. Never waits for the file.
    pub fn write(&self, format: &LogFormat, record: &LogRecord<'_>) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            format.render(record, line);
            let mut pushed = format.sink.push(line);
            if pushed == Pushed::Closed
                && let Some(now) = self.active()
            {
                // The log has moved since the request began.
                pushed = now.sink.push(line);
            }
            match pushed {
                Pushed::Queued => self.lines.inc(),
                Pushed::Full => self.dropped.inc(),
                // Logging was switched off.
                Pushed::Closed => {}
            }
            // One huge header must not keep its memory for ever.
            if line.capacity() > 64 * 1024 {
                *line = Vec::new();
            }
        });
    }

    /// Waits until everything queued so far has been written; for the end of the process.
    pub fn flush(&self) {
        if let Some(configured) = self.configured.lock().as_ref() {
            configured.sink.flush();
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
