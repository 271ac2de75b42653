//! Entries of connections that came to nothing: whoever should have taken them never did.

use std::io;
use std::time::Duration;

use fairlead_abi::EndKey;

use crate::maps::Maps;
use crate::sys::clock;

/// A place is reserved while `connect()` runs, which is microseconds.
const RESERVED_FOR: Duration = Duration::from_secs(5);
/// A captured connection may wait in the daemon's queue, and its SYN be repeated (the kernel gives
/// up after about 130 seconds).
const FLOW_FOR: Duration = Duration::from_secs(180);
/// A delivery's SYN may be repeated as long when the application does not accept.
const CLIENT_FOR: Duration = Duration::from_secs(180);
/// Entries looked at in one sweep.
const MAX_SWEPT: usize = 1 << 20;

/// Removes what is too old; returns how many.
pub(crate) fn sweep(maps: &Maps) -> io::Result<usize> {
    let now = clock::monotonic()?;
    let limit = |key: &EndKey, long: Duration| if key.netns == 0 { RESERVED_FOR } else { long };
    let old = |at: u64, limit: Duration| now.saturating_sub(Duration::from_nanos(at)) > limit;
    let mut swept = 0;
    for key in maps.flows.keys(MAX_SWEPT)? {
        if let Some(flow) = maps.flows.get(&key)?
            && old(flow.at, limit(&key, FLOW_FOR))
        {
            swept += usize::from(maps.flows.remove(&key)?);
        }
    }
    for key in maps.clients.keys(MAX_SWEPT)? {
        if let Some(client) = maps.clients.get(&key)?
            && old(client.at, limit(&key, CLIENT_FOR))
        {
            swept += usize::from(maps.clients.remove(&key)?);
        }
    }
    Ok(swept)
}

/// Removes everything: at a take-over nobody is left to take it.
pub(crate) fn clear(maps: &Maps) -> io::Result<()> {
    for key in maps.flows.keys(MAX_SWEPT)? {
        maps.flows.remove(&key)?;
    }
    for key in maps.clients.keys(MAX_SWEPT)? {
        maps.clients.remove(&key)?;
    }
    Ok(())
}
