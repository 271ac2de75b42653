//! Path normalization (MeshConfig `pathNormalization`).
//!
//! A policy on paths is worth what the server behind it makes of them: `/admin`, `//admin`,
//! `/./admin` and `/%61dmin` are the same to most servers. So a path is normalized first, policy
//! and routes see the normalized form, and **the normalized form is what is forwarded**: the
//! server then sees what was decided upon.

use std::borrow::Cow;

/// `pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// `NONE`: nothing.
    None,
    /// `BASE` (and `DEFAULT`): RFC 3986 with `\` read as `/`, as Envoy's `normalize_path`.
    #[default]
    Base,
    /// `MERGE_SLASHES`: also runs of slashes become one.
    MergeSlashes,
    /// `DECODE_AND_MERGE_SLASHES`: `%2F` and `%5C` are decoded before.
    DecodeAndMergeSlashes,
}

/// Why a path was refused: the request is answered 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with /")]
    NotAbsolute,
    /// It has `%00`, or the byte itself.
    #[error("the path has a NUL")]
    Nul,
    /// It has a fragment, which no client may send.
    #[error("the path has a fragment")]
    Fragment,
    /// It is longer than [`MAX_PATH`].
    #[error("the path exceeds {MAX_PATH} bytes")]
    TooLong,
}

/// Longest path that is normalized.
pub const MAX_PATH: usize = 64 << 10;

/// Normalizes the path (without query) of a request. Allocates only when something changes.
///
/// `CONNECT` has no path and `OPTIONS *` none that could be normalized; neither is to be brought
/// here.
///
/// # Errors
/// A path that cannot be given one meaning; the request must be refused.
pub fn normalize(path: &str, mode: Normalization) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if mode == Normalization::None || is_normal(path.as_bytes(), mode) {
        return Ok(Cow::Borrowed(path));
    }
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    let unslashed = match mode {
        Normalization::DecodeAndMergeSlashes => decode_slashes(path.as_bytes()),
        _ => Cow::Borrowed(path.as_bytes()),
    };
    let mut new = remove_dot_segments(&canonical_escapes(&unslashed)?)?;
    if merges(mode) {
        new.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    }
    if new == path.as_bytes() {
        return Ok(Cow::Borrowed(path));
    }
    // Whatever is not ASCII has been escaped.
    String::from_utf8(new).map(Cow::Owned).map_err(|_| PathError::NotAbsolute)
}

fn merges(mode: Normalization) -> bool {
    matches!(mode, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes)
}

/// Whether nothing in `path` could need a change: the case of nearly every request.
fn is_normal(path: &[u8], mode: Normalization) -> bool {
    let mut previous = 0;
    path.len() <= MAX_PATH
        && path.iter().all(|&byte| {
            let suspicious = match byte {
                b'%' | b'\\' => true,
                b'.' => previous == b'/',
                b'/' => previous == b'/' && merges(mode),
                _ => must_escape(byte),
            };
            previous = byte;
            !suspicious
        })
}

/// Bytes that may not stand in a path as they are.
fn must_escape(byte: u8) -> bool {
    !byte.is_ascii_graphic()
        || matches!(byte, b'"' | b'#' | b'<' | b'>' | b'?' | b'`' | b'{' | b'}')
}

/// RFC 3986 section 2.3: escaping these changes nothing, so they are not escaped.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The byte that the escape at `at` stands for, when there is one.
fn escape_at(path: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low] = path.get(at..at + 3)? else { return None };
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// `%2F` to `/` and `%5C` to `\` (Envoy `UNESCAPE_AND_FORWARD`). Once: `%252F` stays.
fn decode_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    let is_slash = |at: usize| escape_at(path, at).filter(|b| matches!(b, b'/' | b'\\'));
    if !(0..path.len()).any(|at| is_slash(at).is_some()) {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        if let Some(slash) = is_slash(at) {
            out.push(slash);
            at += 3;
        } else {
            out.push(path[at]);
            at += 1;
        }
    }
    Cow::Owned(out)
}

/// `\` to `/`, escapes of unreserved characters decoded, everything that must not stand there
/// escaped. Other escapes stay letter by letter, as servers may care.
fn canonical_escapes(path: &[u8]) -> Result<Vec<u8>, PathError> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(path.len());
    // Where the last `%` that begins no escape was written.
    let mut stray = None;
    let mut at = 0;
    while at < path.len() {
        match (path[at], escape_at(path, at)) {
            (b'%', Some(0)) | (0, _) => return Err(PathError::Nul),
            (b'%', Some(byte)) if is_unreserved(byte) && !completes(&out, stray, byte) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'%', Some(_)) => {
                out.extend_from_slice(&path[at..at + 3]);
                at += 3;
                continue;
            }
            (b'%', None) => {
                stray = Some(out.len());
                out.push(b'%');
            }
            (b'\\', _) => out.push(b'/'),
            (b'#', _) => return Err(PathError::Fragment),
            (byte, _) if must_escape(byte) => {
                out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    Ok(out)
}

/// Whether `byte`, written next, would go on an escape that the percent sign at `stray` begins.
/// `%2%65` must not become `%2e`: that would hand the server an escape which nobody has looked at.
fn completes(out: &[u8], stray: Option<usize>, byte: u8) -> bool {
    stray.is_some_and(|percent| {
        let since = &out[percent + 1..];
        since.len() < 2 && byte.is_ascii_hexdigit() && since.iter().all(u8::is_ascii_hexdigit)
    })
}

/// RFC 3986 section 5.2.4, for absolute paths.
fn remove_dot_segments(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let Some((b'/', rest)) = path.split_first() else { return Err(PathError::NotAbsolute) };
    let mut out = Vec::with_capacity(path.len());
    let mut segments = rest.split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    out.truncate(out.iter().rposition(|b| *b == b'/').unwrap_or(0));
                }
                if last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
