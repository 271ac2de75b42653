//! The daemon's own log: tracing to stderr, with a level that can be changed while it runs.

use std::fmt;
use std::sync::Arc;

use fairlead_telemetry::access_log::Lines;
use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt as lines, reload};

use crate::settings::{LogFormat, LogSettings};

/// Directives longer than this are refused.
const MAX_DIRECTIVES: usize = 1024;

/// The level, for the admin API. Cloning shares it.
#[derive(Clone)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.current.lock()).finish()
    }
}

impl LogLevel {
    /// The directives in force.
    #[must_use]
    pub fn get(&self) -> String {
        self.current.lock().clone()
    }

    /// Changes the level.
    ///
    /// # Errors
    /// Says what is wrong with the directives.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let filter = parse(directives)?;
        let mut current = self.current.lock();
        self.handle.reload(filter).map_err(|e| e.to_string())?;
        directives.clone_into(&mut current);
        Ok(())
    }
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    if directives.is_empty() || directives.len() > MAX_DIRECTIVES {
        return Err("expected a level or directives such as info,fairlead_proxy=debug".into());
    }
    // What people mean by a single word is a level; EnvFilter would take any other word for the
    // name of a module and silence everything else.
    let word = directives.bytes().all(|b| b.is_ascii_alphabetic());
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    if word && !levels.iter().any(|l| l.eq_ignore_ascii_case(directives)) {
        return Err(format!("{directives:?} is not one of {}", levels.join(", ")));
    }
    EnvFilter::try_new(directives).map_err(|e| format!("{directives:?}: {e}"))
}

/// A filter and its handle, not installed: what tests of the admin API use.
///
/// # Errors
/// The directives are not valid.
pub fn filter(directives: &str) -> Result<(reload::Layer<EnvFilter, Registry>, LogLevel), String> {
    let (layer, handle) = reload::Layer::new(parse(directives)?);
    let current = Arc::new(Mutex::new(directives.to_owned()));
    Ok((layer, LogLevel { handle, current }))
}

/// Logging, started.
#[derive(Clone)]
pub struct Logging {
    /// The level, for the admin API.
    pub level: LogLevel,
    /// The way to stderr, through a thread: whoever reads it slowly holds nobody up.
    pub lines: Arc<Lines>,
}

/// Starts logging for the whole process.
///
/// # Errors
/// The level is not valid, or somebody else has started logging.
pub fn start(settings: &LogSettings) -> Result<Logging, String> {
    let (filter, level) = filter(&settings.level).map_err(|e| format!("--log-level: {e}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let writer = Arc::new(Lines::to("/dev/stderr"));
    let lines = lines::layer().with_writer(Arc::clone(&writer));
    match settings.format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|e| e.to_string())?;
    Ok(Logging { level, lines: writer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives() {
        let (_layer, level) = filter("info").unwrap();
        for good in ["debug", "WARN", "info,fairlead_proxy=trace"] {
            level.set(good).unwrap();
            assert_eq!(level.get(), good);
        }
        for bad in ["", "loud", "fairlead_proxy=loud", &"x,".repeat(MAX_DIRECTIVES)] {
            assert!(level.set(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(level.get(), "info,fairlead_proxy=trace", "a refused level changes nothing");
    }
}
