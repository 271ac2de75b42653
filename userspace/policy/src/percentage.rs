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
