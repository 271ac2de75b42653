//! CPU time and memory of processes, from `/proc`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// CPU time and resident memory of some processes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time so far, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Resident memory in bytes, shared pages counted once per process.
    pub(crate) resident: u64,
}

/// The kernel's USER_HZ; 100 on every architecture that Linux supports with Rust.
const TICKS_PER_SECOND: f64 = 100.0;

/// What `pids` used so far.
pub(crate) fn of(pids: &[u32]) -> Result<Usage> {
    let mut usage = Usage::default();
    for pid in pids {
        let dir = Path::new("/proc").join(pid.to_string());
        let stat = fs::read_to_string(dir.join("stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        // The name in parentheses may hold spaces; fields are counted from behind it.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        for field in [11, 12] {
            let ticks: f64 = fields.get(field).context("short stat")?.parse()?;
            usage.cpu_seconds += ticks / TICKS_PER_SECOND;
        }
        let status = fs::read_to_string(dir.join("status"))?;
        let kib: u64 = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .and_then(|l| l.trim().strip_suffix("kB"))
            .context("no VmRSS")?
            .trim()
            .parse()?;
        usage.resident += kib * 1024;
    }
    Ok(usage)
}

/// Busy time of all processors so far, in seconds: what a request costs the whole machine,
/// softirqs included.
pub(crate) fn machine() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum::<f64>();
    Ok(busy / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn own_cpu_time_grows_with_work() {
        let pid = [std::process::id()];
        let before = of(&pid).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(120) {
            std::hint::spin_loop();
        }
        let after = of(&pid).unwrap();
        assert!(after.cpu_seconds - before.cpu_seconds >= 0.05);
        assert!(after.resident > 100_000);
    }
}
