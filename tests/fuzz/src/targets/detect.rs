//! The detection of what a client speaks.

use fairlead_proxy::detect::{H2_PREFACE, SNIFF_MAX, Sniff, sniff};

use super::client_hello::cuts;

/// A verdict stands when more arrives, comes in bounded time, and says of whole lines what a
/// plain reading says.
pub fn run(data: &[u8]) {
    let verdict = sniff(data);
    for end in cuts(data.len()) {
        let early = sniff(&data[..end]);
        assert!(
            early == Sniff::NeedMore || early == verdict,
            "{early:?} of the first {end} bytes became {verdict:?}"
        );
    }
    if data.len() > SNIFF_MAX + 64 {
        assert_ne!(verdict, Sniff::NeedMore);
    }
    assert_eq!(verdict == Sniff::Http2, data.starts_with(H2_PREFACE));
    assert_eq!(verdict == Sniff::Tls, data.starts_with(&[0x16, 3]));
    if verdict == Sniff::Http1 {
        let method = data.split(|b| *b == b' ').next().unwrap_or_default();
        assert!(!method.is_empty() && method.len() <= 24, "a method of {} bytes", method.len());
        assert!(method.iter().all(|b| b.is_ascii_uppercase() || b"-_".contains(b)));
        if let Some(end) = data.iter().position(|b| *b == b'\n').filter(|end| *end < SNIFF_MAX) {
            let line = data[..end].strip_suffix(b"\r").unwrap_or(&data[..end]);
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            assert!(version.starts_with(b"HTTP/1."), "{}", version.escape_ascii());
        }
    }
}
