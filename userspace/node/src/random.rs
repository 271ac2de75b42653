//! Jitter. It spreads load and protects nothing, so that the quality of a hash's seed is enough.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

fn unit() -> f64 {
    // Each `RandomState` is seeded anew.
    let bits = RandomState::new().build_hasher().finish() >> 32;
    #[expect(clippy::cast_precision_loss, reason = "32 bits fit")]
    let unit = bits as f64 / (f64::from(u32::MAX) + 1.0);
    unit
}

/// A number below `count`; 0 if there is none.
#[must_use]
pub(crate) fn below(count: usize) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small counts"
    )]
    let n = (unit() * count as f64) as usize;
    n.min(count.saturating_sub(1))
}

/// Between half of a time and all of it.
#[must_use]
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + unit() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_spread_within_their_bounds() {
        let mut seen = [0_u32; 4];
        for _ in 0..4000 {
            seen[below(4)] += 1;
            let time = jittered(Duration::from_secs(2));
            assert!(time >= Duration::from_secs(1) && time <= Duration::from_secs(2));
        }
        assert!(seen.iter().all(|n| *n > 500), "{seen:?}");
        assert_eq!((below(0), below(1)), (0, 0));
    }
}
