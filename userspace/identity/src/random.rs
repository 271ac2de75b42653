//! Randomness from the TLS provider, for serial numbers and jitter.

use rustls::crypto::aws_lc_rs;

/// Fills `buf`; `None` if the system has no randomness to give.
pub(crate) fn fill(buf: &mut [u8]) -> Option<()> {
    aws_lc_rs::default_provider().secure_random.fill(buf).ok()
}

/// A factor in `[low, high)`. Without randomness the middle is as good as any: jitter spreads
/// load, it protects nothing.
pub(crate) fn factor(low: f64, high: f64) -> f64 {
    let mut bytes = [0; 4];
    let unit = match fill(&mut bytes) {
        Some(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        None => 0.5,
    };
    low + (high - low) * unit
}
