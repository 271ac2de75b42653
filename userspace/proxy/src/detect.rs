//! What a connection speaks, from its first bytes. Pure and bounded: no I/O, no allocation, and a
//! verdict never changes when more bytes arrive.

/// Bytes after which a request line without end is judged by its beginning.
pub const SNIFF_MAX: usize = 8 * 1024;
/// The longest method that is taken for HTTP.
const METHOD_MAX: usize = 24;
/// HTTP/2 connection preface (RFC 9113 section 3.4).
pub const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// A TLS handshake.
    Tls,
    /// None of these.
    Other,
    /// Too few bytes to tell.
    NeedMore,
}

/// Judges the first bytes of a client.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniff {
    match bytes {
        [] | [0x16] => return Sniff::NeedMore,
        [0x16, 0x03, ..] => return Sniff::Tls,
        _ => {}
    }
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        return if common == H2_PREFACE.len() { Sniff::Http2 } else { Sniff::NeedMore };
    }
    sniff_http1(bytes)
}

/// `METHOD SP target SP HTTP/1.x`: the version has to be there, because line protocols (Redis
/// inline commands) begin with words such as `GET` too.
fn sniff_http1(bytes: &[u8]) -> Sniff {
    let method_len =
        bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    if method_len > METHOD_MAX {
        return Sniff::Other;
    }
    let Some(&after) = bytes.get(method_len) else {
        return Sniff::NeedMore;
    };
    if method_len == 0 || after != b' ' {
        return Sniff::Other;
    }
    let rest = &bytes[method_len + 1..];
    let window = &rest[..rest.len().min(SNIFF_MAX)];
    match window.iter().position(|&b| b == b'\n') {
        Some(end) => {
            let line = window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]);
            match line.iter().rposition(|&b| b == b' ') {
                _ if !line.iter().all(|&b| is_text(b)) => Sniff::Other,
                Some(space) if space > 0 && is_http1_version(&line[space + 1..]) => Sniff::Http1,
                _ => Sniff::Other,
            }
        }
        None if !window.strip_suffix(b"\r").unwrap_or(window).iter().all(|&b| is_text(b)) => {
            Sniff::Other
        }
        None if window.len() < SNIFF_MAX => Sniff::NeedMore,
        // A line this long is a long URI or nothing that text protocols send.
        None if window.starts_with(b"/") || window.starts_with(b"http") => Sniff::Http1,
        None => Sniff::Other,
    }
}

fn is_text(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f
}

fn is_http1_version(version: &[u8]) -> bool {
    version.len() == 8 && version.starts_with(b"HTTP/1.") && version[7].is_ascii_digit()
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
