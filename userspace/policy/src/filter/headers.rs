//! Header manipulation (VirtualService `headers`, of a route or of one of its destinations).

use http::{HeaderMap, HeaderName, HeaderValue};

/// What is done to the headers of a request and of its response.
///
/// Where a route and its chosen destination both have operations, the route's are applied first
/// and then the destination's, which therefore win (Istio appends them in that order). Only for
/// the authority it is the other way round: the route's wins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderOps {
    /// `headers.request`.
    pub request: HeaderEdit,
    /// `headers.response`.
    pub response: HeaderEdit,
}

/// Operations on one set of headers: remove, then set, then add (Envoy's order).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdit {
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
    authority: Option<Box<str>>,
}

/// Which message an edit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The request: `set` may name `:authority` or `Host`.
    Request,
    /// The response: no pseudo header at all.
    Response,
}

impl HeaderEdit {
    /// Compiles `set`, `add` and `remove`.
    ///
    /// # Errors
    /// The first entry that is not a legal header, or names a pseudo header. `:authority` and
    /// `Host` may be set or added on a request: both mean a host rewrite, and `set` wins (Istio
    /// `TranslateHeadersOperations`). Nothing may remove them.
    pub fn new<'a>(
        direction: Direction,
        set: impl IntoIterator<Item = (&'a str, &'a str)>,
        add: impl IntoIterator<Item = (&'a str, &'a str)>,
        remove: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, HeaderEditError> {
        let (set, set_authority) = values(direction, set)?;
        let (add, add_authority) = values(direction, add)?;
        let remove = remove.into_iter().map(header_name).collect::<Result<_, _>>()?;
        Ok(Self { set, add, remove, authority: set_authority.or(add_authority) })
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
            && self.authority.is_none()
    }

    /// The authority that a request is to carry from here on, when `set` named it.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Does it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Headers whose values are secrets as a rule.
const SECRETS: [&str; 5] =
    ["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"];

/// Whether the values of a header are not for dumps and logs.
#[must_use]
pub fn is_secret(name: &HeaderName) -> bool {
    SECRETS.contains(&name.as_str())
}

type Values = (Box<[(HeaderName, HeaderValue)]>, Option<Box<str>>);

/// Compiles name-value pairs; the authority, where a request may change it, is kept apart.
fn values<'a>(
    direction: Direction,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Values, HeaderEditError> {
    let mut headers = Vec::new();
    let mut authority = None;
    for (name, value) in pairs {
        if direction == Direction::Request && is_host(name) {
            value
                .parse::<http::uri::Authority>()
                .map_err(|_| HeaderEditError::value(name, value))?;
            authority = Some(value.into());
        } else {
            let (name, mut value) = (header_name(name)?, header_value(name, value)?);
            // Then its `Debug` does not show it, and HPACK does not index it.
            value.set_sensitive(is_secret(&name));
            headers.push((name, value));
        }
    }
    Ok((headers.into(), authority))
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

fn header_name(name: &str) -> Result<HeaderName, HeaderEditError> {
    if name.starts_with(':') || is_host(name) {
        return Err(HeaderEditError::Pseudo(name.chars().take(64).collect()));
    }
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| HeaderEditError::Name(name.chars().take(64).collect()))
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, HeaderEditError> {
    HeaderValue::from_str(value).map_err(|_| HeaderEditError::value(name, value))
}

/// Why a header operation was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderEditError {
    /// A pseudo header, or `Host`, where it may not be changed.
    #[error(
        "{0:?} cannot be changed here: only `set` and `add` of a request may name :authority or Host, no other pseudo header can be changed"
    )]
    Pseudo(String),
    /// Not a header name.
    #[error("{0:?} is not a valid header name")]
    Name(String),
    /// Not a header value.
    #[error("{value:?} is not a valid value of {name}")]
    Value {
        /// Of which header.
        name: String,
        /// The value.
        value: String,
    },
}

impl HeaderEditError {
    fn value(name: &str, value: &str) -> Self {
        Self::Value { name: name.into(), value: value.chars().take(64).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(
        set: &[(&str, &str)],
        add: &[(&str, &str)],
        remove: &[&str],
    ) -> Result<HeaderEdit, HeaderEditError> {
        HeaderEdit::new(
            Direction::Request,
            set.iter().copied(),
            add.iter().copied(),
            remove.iter().copied(),
        )
    }

    #[test]
    fn remove_then_set_then_add() {
        let edit = edit(
            &[("x-set", "new"), ("X-Both", "set")],
            &[("x-add", "2"), ("x-both", "add")],
            &["x-gone", "X-Both"],
        )
        .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-set", "old"), ("x-set", "older"), ("x-add", "1"), ("x-gone", "1"), ("x-both", "0")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        edit.apply(&mut headers);
        let all = |name: &str| {
            headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-add"), ["1", "2"]);
        assert_eq!(all("x-both"), ["set", "add"]);
        assert!(all("x-gone").is_empty());
    }

    #[test]
    fn authority_is_a_rewrite_and_set_wins() {
        let both = edit(&[("Host", "a:80")], &[(":authority", "b")], &[]).unwrap();
        assert_eq!(both.authority(), Some("a:80"));
        assert!(!both.is_empty());
        assert_eq!(edit(&[], &[("host", "b")], &[]).unwrap().authority(), Some("b"));
        assert!(edit(&[], &[], &[]).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        for name in [":method", ":path", ":scheme", ":status", "a b", "", "x\n"] {
            assert!(edit(&[(name, "x")], &[], &[]).is_err(), "set {name:?}");
            assert!(edit(&[], &[(name, "x")], &[]).is_err(), "add {name:?}");
            assert!(edit(&[], &[], &[name]).is_err(), "remove {name:?}");
        }
        assert!(edit(&[], &[], &["Host"]).is_err());
        assert!(edit(&[("x", "a\r\nb: c")], &[], &[]).is_err(), "a header would be smuggled in");
        assert!(edit(&[("host", "a b")], &[], &[]).is_err());
        let on_response = HeaderEdit::new(Direction::Response, [("host", "a")], [], []);
        assert!(matches!(on_response, Err(HeaderEditError::Pseudo(_))));
    }
}
