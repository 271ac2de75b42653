//! What the eBPF programs log, when it is switched on, goes where everything else is logged.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use aya_log::EbpfLogger;

/// How often the programs' ring buffer is emptied.
const PERIOD: Duration = Duration::from_millis(100);

/// Hands records to `tracing`, under the target `fairlead_ebpf`.
#[derive(Debug)]
pub(crate) struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let (text, line) = (record.args(), record.line());
        match record.level() {
            log::Level::Error => tracing::error!(target: "fairlead_ebpf", line, "{text}"),
            log::Level::Warn => tracing::warn!(target: "fairlead_ebpf", line, "{text}"),
            log::Level::Info => tracing::info!(target: "fairlead_ebpf", line, "{text}"),
            _ => tracing::debug!(target: "fairlead_ebpf", line, "{text}"),
        }
    }

    fn flush(&self) {}
}

/// Reads until the sender returned is dropped.
pub(crate) fn start(mut logger: EbpfLogger<ToTracing>) -> io::Result<mpsc::Sender<()>> {
    let (sender, receiver) = mpsc::channel::<()>();
    std::thread::Builder::new().name("fairlead-ebpf-log".into()).spawn(move || {
        while receiver.recv_timeout(PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
            logger.flush();
        }
    })?;
    Ok(sender)
}
