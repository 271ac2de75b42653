//! A share of traffic.

/// A share of traffic, to a millionth (Istio `Percent`, Envoy `FractionalPercent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage(u32);

impl Percentage {
    const WHOLE: u32 = 1_000_000;
    /// Everything.
    pub const ALL: Self = Self(Self::WHOLE);
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// From a number between 0 and 100; `None` outside of it.
    #[must_use]
    pub fn from_percent(percent: f64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1,000,000"
        )]
        (0.0..=100.0)
            .contains(&percent)
            .then(|| Self((percent * f64::from(Self::WHOLE / 100)).round() as u32))
    }

    /// Whether the request with this uniformly random `ticket` belongs to the share.
    #[must_use]
    pub fn hits(self, ticket: u32) -> bool {
        (u64::from(ticket) * u64::from(Self::WHOLE)) >> 32 < u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn limits() {
        for ticket in [0, 1, u32::MAX / 2, u32::MAX] {
            assert!(Percentage::ALL.hits(ticket));
            assert!(!Percentage::NONE.hits(ticket));
        }
        assert_eq!(Percentage::from_percent(100.0), Some(Percentage::ALL));
        assert_eq!(Percentage::from_percent(0.0), Some(Percentage::NONE));
        for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Percentage::from_percent(bad), None);
        }
    }

    #[test]
    fn shares_within_four_sigma() {
        const N: u32 = 200_000;
        let mut rng = Rng::new("shares_within_four_sigma");
        for percent in [0.1, 1.0, 10.0, 50.0, 99.9] {
            let share = Percentage::from_percent(percent).unwrap();
            let hits = (0..N).filter(|_| share.hits(rng.ticket())).count() as f64;
            let p = percent / 100.0;
            let sigma = (f64::from(N) * p * (1.0 - p)).sqrt();
            assert!((hits - f64::from(N) * p).abs() < 4.0 * sigma, "{percent} %: {hits}");
        }
    }
}
