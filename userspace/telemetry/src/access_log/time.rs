//! UTC times for log lines, without a calendar library.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Utc {
    pub(crate) unix: u64,
    pub(crate) nanos: u32,
    pub(crate) year: u64,
    pub(crate) month: u64,
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    pub(crate) second: u64,
}

impl Utc {
    /// Times before 1970 count as 1970.
    pub(crate) fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix = since.as_secs();
        let (days, second) = (unix / 86_400, unix % 86_400);
        // Days since 0000-03-01, in eras of 400 years (146,097 days), years that begin in March.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            unix,
            nanos: since.subsec_nanos(),
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted + 2) / 5 + 1,
            hour: second / 3_600,
            minute: second % 3_600 / 60,
            second: second % 60,
        }
    }

    /// Envoy's default: `2026-11-22T14:43:00.123Z`.
    pub(crate) fn iso(&self, out: &mut Vec<u8>) {
        let Self { year, month, day, hour, minute, second, nanos, .. } = self;
        let millis = nanos / 1_000_000;
        let _ = write!(
            out,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        );
    }
}

/// A piece of a `%START_TIME(…)%` format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TimePart {
    Literal(String),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Unix,
    /// The given number of digits of the fraction of a second (1, 3, 6 or 9).
    Fraction(u32),
}

/// Compiles the strftime specifiers that Envoy documents for `%START_TIME%` and that make sense
/// in UTC. The error is the specifier that is not known.
pub(crate) fn compile(format: &str) -> Result<Vec<TimePart>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (taken, made): (usize, &[TimePart]) = if rest.starts_with('%') {
            literal.push('%');
            rest = &rest[1..];
            continue;
        } else if rest.starts_with("3f") {
            (2, &[TimePart::Fraction(3)])
        } else if rest.starts_with("6f") {
            (2, &[TimePart::Fraction(6)])
        } else if rest.starts_with("9f") {
            (2, &[TimePart::Fraction(9)])
        } else {
            (
                1,
                match rest.bytes().next() {
                    Some(b'Y') => &[TimePart::Year],
                    Some(b'm') => &[TimePart::Month],
                    Some(b'd') => &[TimePart::Day],
                    Some(b'H') => &[TimePart::Hour],
                    Some(b'M') => &[TimePart::Minute],
                    Some(b'S') => &[TimePart::Second],
                    Some(b's') => &[TimePart::Unix],
                    Some(b'f') => &[TimePart::Fraction(9)],
                    _ => return Err(format!("%{}", rest.chars().take(2).collect::<String>())),
                },
            )
        };
        if !literal.is_empty() {
            parts.push(TimePart::Literal(std::mem::take(&mut literal)));
        }
        parts.extend_from_slice(made);
        rest = &rest[taken..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(TimePart::Literal(literal));
    }
    Ok(parts)
}

pub(crate) fn render(parts: &[TimePart], time: &Utc, out: &mut Vec<u8>) {
    for part in parts {
        let _ = match part {
            TimePart::Literal(text) => write!(out, "{text}"),
            TimePart::Year => write!(out, "{:04}", time.year),
            TimePart::Month => write!(out, "{:02}", time.month),
            TimePart::Day => write!(out, "{:02}", time.day),
            TimePart::Hour => write!(out, "{:02}", time.hour),
            TimePart::Minute => write!(out, "{:02}", time.minute),
            TimePart::Second => write!(out, "{:02}", time.second),
            TimePart::Unix => write!(out, "{}", time.unix),
            TimePart::Fraction(digits) => {
                let width = *digits as usize;
                write!(out, "{:0width$}", time.nanos / 10_u32.pow(9 - digits))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn iso(unix: u64) -> String {
        let mut out = Vec::new();
        Utc::new(UNIX_EPOCH + Duration::from_secs(unix)).iso(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_are_right() {
        // Reference values of `date -u -d @N`.
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(951_782_399), "2000-02-28T23:59:59.000Z");
        assert_eq!(iso(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso(1_709_251_199), "2024-02-29T23:59:59.000Z");
        assert_eq!(iso(4_107_542_400), "2100-03-01T00:00:00.000Z");
        assert_eq!(iso(1_795_358_580), "2026-11-22T14:43:00.000Z");
    }

    #[test]
    fn custom_formats() {
        let time = Utc::new(UNIX_EPOCH + Duration::from_nanos(1_795_358_580_012_345_678));
        let render = |format: &str| {
            let mut out = Vec::new();
            super::render(&compile(format).unwrap(), &time, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(render("%Y/%m/%dT%H:%M:%S"), "2026/11/22T14:43:00");
        assert_eq!(render("%s.%3f 100%%"), "1795358580.012 100%");
        assert_eq!(render("%6f %9f"), "012345 012345678");
        assert_eq!(compile("%Q"), Err("%Q".into()));
        assert_eq!(compile("%"), Err("%".into()));
    }
}
