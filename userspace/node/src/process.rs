//! The process itself: what it uses, and the descriptors that it may have.

use std::fs;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are asked for: a carried connection needs a handful.
const DESCRIPTORS: u64 = 1_048_576;

/// Raises the limit of descriptors as far as the kernel lets; returns what it is then.
pub fn raise_descriptor_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(u64::MAX);
    if hard < DESCRIPTORS {
        let more = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
        // Without CAP_SYS_RESOURCE the hard limit is what there is.
        if setrlimit(Resource::Nofile, more).is_ok() {
            return DESCRIPTORS;
        }
    }
    let wanted = hard.min(DESCRIPTORS).max(now.current.unwrap_or(0));
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// CPU time of all threads.
    pub cpu: Duration,
    /// Threads.
    pub threads: u64,
}

/// Reads it from `/proc`; what cannot be read is zero.
#[must_use]
pub fn usage() -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Usage {
        resident: field("VmRSS:").unwrap_or(0) * 1024,
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        cpu: cpu_time(&fs::read_to_string("/proc/self/stat").unwrap_or_default())
            .unwrap_or_default(),
        threads: field("Threads:").unwrap_or(0),
    }
}

/// Fields 14 and 15 of proc(5) `stat`, after the name in parentheses, in ticks of 10 ms.
/// Public for `tests/fuzz` alone.
#[doc(hidden)]
#[must_use]
pub fn cpu_time(stat: &str) -> Option<Duration> {
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace().skip(11);
    let user = fields.next()?.parse::<u64>().ok()?;
    let ticks = user.checked_add(fields.next()?.parse::<u64>().ok()?)?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
}

/// Seconds since 1970.
#[must_use]
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = usage();
        assert!(usage.resident > 1 << 20 && usage.descriptors > 2 && usage.threads >= 1);
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 5 1 1 1";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_time("nonsense"), None);
    }

    #[test]
    fn the_descriptor_limit_never_sinks() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(raise_descriptor_limit() >= before);
    }
}
