//! Inputs with some structure, out of bytes.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};

/// The text of an input; targets of text parsers have nothing to say about other bytes.
#[must_use]
pub fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// The input in two, at its first line feed.
#[must_use]
pub fn two(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// The same of a text.
#[must_use]
pub fn two_texts(data: &[u8]) -> Option<(&str, &str)> {
    let (first, second) = two(data);
    Some((text(first)?, text(second)?))
}

/// A list of headers, one on each line as in HTTP/1. Lines that are none are left out: what hyper
/// and h2 refuse never reaches a parser of ours.
#[must_use]
pub fn headers(data: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in data.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().skip(1).position(|b| *b == b':') else { continue };
        let (name, value) = (&line[..=colon], line[colon + 2..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// A request as hyper hands it over: `GET /path 1.1`, then [`headers`].
#[must_use]
pub fn request(data: &[u8]) -> Option<Request<()>> {
    let (line, rest) = two(data);
    let mut words = line.split(|b| *b == b' ');
    let (method, uri, version) = (words.next()?, words.next()?, words.next()?);
    let version = match version {
        b"1.0" => Version::HTTP_10,
        b"2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut request = Request::builder().method(method).uri(uri).version(version).body(()).ok()?;
    *request.headers_mut() = headers(rest);
    Some(request)
}
