//! The clock that the eBPF programs stamp entries with.

use std::io;
use std::time::Duration;

use super::socket::check;

/// `CLOCK_MONOTONIC`, which is `bpf_ktime_get_ns`.
pub(crate) fn monotonic() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the result.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) })?;
    let secs = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanos = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(secs, nanos))
}
