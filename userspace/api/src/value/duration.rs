//! `google.protobuf.Duration` as people write it: `1.5s` (protobuf-JSON), and Go's `1h`, `250ms`,
//! `1m30s`, which Istio documents and takes as well.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// The longest duration that is taken: protobuf's own bound of about 10,000 years.
pub const MAX_DURATION: Duration = Duration::from_secs(315_576_000_000);

/// Longest text of a duration: enough for any sensible one, and far from the limits of the
/// arithmetic.
pub(crate) const MAX_DURATION_TEXT: usize = 48;

/// A non-negative duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtoDuration(pub Duration);

impl ProtoDuration {
    /// The duration.
    #[must_use]
    pub fn get(self) -> Duration {
        self.0
    }
}

impl From<ProtoDuration> for Duration {
    fn from(value: ProtoDuration) -> Self {
        value.0
    }
}

/// Reads a duration: one or more decimal numbers, each with a unit of `ns us µs ms s m h`, or a
/// bare `0`. Negative, empty, unit-less and too long (over [`MAX_DURATION`]) texts give `None`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > MAX_DURATION_TEXT {
        return None;
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let per_unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(per_unit)?)?;
        let mut scale = per_unit;
        for digit in fraction.bytes() {
            scale /= 10;
            nanos = nanos.checked_add(u128::from(digit - b'0') * scale)?;
        }
        rest = tail;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    let value = Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?);
    (value <= MAX_DURATION).then_some(value)
}

impl<'de> Deserialize<'de> for ProtoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = ProtoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 1.5s, 250ms, 1m30s or 2h, not negative")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProtoDuration, E> {
                parse_duration(text)
                    .map(ProtoDuration)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl fmt::Display for ProtoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_people_write() {
        for (text, nanos) in [
            ("0", 0_u128),
            ("0s", 0),
            ("1s", 1_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("0.000000001s", 1),
            ("250ms", 250_000_000),
            ("1m30s", 90_000_000_000),
            ("1h", 3_600_000_000_000),
            ("2us", 2_000),
            ("2µs", 2_000),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_nanos()), Some(nanos), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_duration() {
        for text in [
            "",
            "1",
            "s",
            ".s",
            "-1s",
            "+1s",
            "1 s",
            "1..2s",
            "1.2.3s",
            "1d",
            "1e3s",
            "9999999999999999999h",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
