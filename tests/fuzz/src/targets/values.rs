//! Values with a written form of their own: durations, percentages, ports by number or name,
//! string matches.

use std::time::Duration;

use fairlead_api::{IntOrString, MAX_DURATION, Percent, StringMatch, parse_duration};
use fairlead_config::source::from_yaml;
use fairlead_policy::Percentage;

use crate::input;

/// A duration is what its digits say; the other values are of their range, and print as what
/// reads back the same.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    let parsed = parse_duration(text);
    assert_eq!(parsed, plainly(text), "the duration {text:?}");
    if let Some(duration) = parsed {
        assert!(duration <= MAX_DURATION);
        assert_eq!(parse_duration(&format!("{}ns", duration.as_nanos())), Some(duration));
    }
    structured(text);
}

/// The sum of number and unit, in decimal arithmetic on digits alone.
fn plainly(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > 48 {
        return None;
    }
    let mut total = 0_u128;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number = &rest[..end];
        rest = &rest[end..];
        // Longest units first: `ms` is not `m` and an `s`.
        let units =
            [("ns", 0), ("us", 3), ("µs", 3), ("μs", 3), ("ms", 6), ("s", 9), ("m", 9), ("h", 9)];
        let (unit, zeros) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        if !rest.is_empty() && !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return None;
        }
        let factor = match unit {
            "m" => 60,
            "h" => 3600,
            _ => 1,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let scale = 10_u128.pow(zeros) * factor;
        let whole = format!("0{whole}").parse::<u128>().ok()?.checked_mul(scale)?;
        // Each digit is rounded down by itself, which matters below a nanosecond only.
        let mut part = 0;
        let mut place = scale;
        for digit in fraction.chars() {
            place /= 10;
            part += u128::from(digit.to_digit(10)?) * place;
        }
        total = total.checked_add(whole)?.checked_add(part)?;
    }
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    let nanos = u32::try_from(total % 1_000_000_000).ok()?;
    Some(Duration::new(seconds, nanos)).filter(|d| *d <= MAX_DURATION)
}

/// What YAML makes of a value; the wrappers have the field that the text is the value of.
fn structured(text: &str) {
    if let Ok(percent) = from_yaml::<Percent>(text) {
        let share = Percentage::from_percent(percent.value);
        assert_eq!(share.is_some(), (0.0..=100.0).contains(&percent.value), "{percent:?}");
        if let Some(share) = share {
            assert!(!share.hits(u32::MAX) || share == Percentage::ALL);
            assert!(share.hits(0) || share == Percentage::NONE);
        }
    }
    if let Ok(found) = from_yaml::<StringMatch>(text) {
        assert!(!found.to_string().is_empty());
    }
    if let Ok(port) = serde_json::from_str::<IntOrString>(text) {
        match port {
            IntOrString::Int(n) => assert_eq!(text.trim_ascii().parse(), Ok(n)),
            IntOrString::String(name) => {
                let read = serde_json::from_str::<String>(text).expect("it was a string");
                assert_eq!(read, name);
            }
        }
    }
}
