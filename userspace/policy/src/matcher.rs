//! String matching as Istio's `StringMatch` and Envoy's header matchers define it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use regex::bytes::{Regex, RegexBuilder};

use crate::RequestView;

/// Longest pattern that is compiled; Istio's own limit for a path is far below.
const MAX_PATTERN_LEN: usize = 4096;
/// Upper bound of one compiled program (Istio allows RE2 programs of 32768 instructions).
const REGEX_SIZE_LIMIT: usize = 1 << 20;
/// Upper bound of the lazily built automaton that each thread keeps per pattern.
const REGEX_DFA_SIZE_LIMIT: usize = 256 << 10;

/// How a text is matched (Istio `StringMatch`, Envoy `StringMatcher`).
#[derive(Clone, Debug, PartialEq)]
pub enum StringMatch {
    /// Equal.
    Exact(Box<str>),
    /// Begins with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Anything, as long as it is there.
    Present,
    /// The whole text matches a regular expression.
    Regex(FullRegex),
}

impl StringMatch {
    /// A regular expression that has to match the whole text.
    ///
    /// # Errors
    /// The pattern is malformed, too long, or its program too large.
    pub fn regex(pattern: &str) -> Result<Self, PatternError> {
        FullRegex::new(pattern).map(Self::Regex)
    }

    /// AuthorizationPolicy's spelling: `*` any, `x*` prefix, `*x` suffix, otherwise exact.
    #[must_use]
    pub fn wildcard(value: &str) -> Self {
        match value {
            "*" => Self::Present,
            _ => match (value.strip_prefix('*'), value.strip_suffix('*')) {
                (Some(suffix), _) => Self::Suffix(suffix.into()),
                (None, Some(prefix)) => Self::Prefix(prefix.into()),
                (None, None) => Self::Exact(value.into()),
            },
        }
    }

    /// Whether `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.matches_bytes(text.as_bytes())
    }

    /// Whether `bytes` (a header value need not be UTF-8) match.
    #[must_use]
    pub fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Exact(want) => bytes == want.as_bytes(),
            Self::Prefix(want) => bytes.starts_with(want.as_bytes()),
            Self::Suffix(want) => bytes.ends_with(want.as_bytes()),
            Self::Present => true,
            Self::Regex(regex) => regex.matches(bytes),
        }
    }

    /// Whether `text` matches without regard to ASCII case; a regular expression keeps its own
    /// case rules (VirtualService `ignoreUriCase` "only for exact and prefix").
    #[must_use]
    pub fn matches_ignore_case(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        match self {
            Self::Exact(want) => bytes.eq_ignore_ascii_case(want.as_bytes()),
            Self::Prefix(want) => bytes
                .get(..want.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(want.as_bytes())),
            Self::Suffix(want) => bytes
                .len()
                .checked_sub(want.len())
                .is_some_and(|at| bytes[at..].eq_ignore_ascii_case(want.as_bytes())),
            Self::Present => true,
            Self::Regex(regex) => regex.matches(bytes),
        }
    }
}

/// A compiled regular expression that matches whole texts. Two are equal when their patterns are.
///
/// Linear time in the text, like RE2. Classes are ASCII and `.` is any byte but `\n`, which is
/// RE2 on ASCII input. The few RE2 spellings that the engine does not know are refused.
#[derive(Clone, Debug)]
pub struct FullRegex {
    pattern: Box<str>,
    regex: Regex,
}

impl FullRegex {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// The pattern is malformed, too long, or its program too large.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        // Alone first: `a)|(b` must not become well-formed by being wrapped.
        compile(pattern)?;
        let regex = compile(&format!(r"\A(?:{pattern})\z"))?;
        Ok(Self { pattern: pattern.into(), regex })
    }

    /// The pattern as written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Whether all of `bytes` match.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.regex.is_match(bytes)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

/// Compiles a pattern under the bounds that hold for all of them.
pub(crate) fn compile(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(PatternError::TooLong { len: pattern.len() });
    }
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(REGEX_SIZE_LIMIT)
        .dfa_size_limit(REGEX_DFA_SIZE_LIMIT)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => PatternError::TooBig { limit },
            other => PatternError::Syntax(other.to_string()),
        })
}

/// Why a pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression that the engine knows.
    #[error("not a valid regular expression: {0}")]
    Syntax(String),
    /// Longer than any sane pattern.
    #[error("the pattern has {len} bytes; at most {MAX_PATTERN_LEN} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The compiled program would be too large.
    #[error("the compiled pattern exceeds {limit} bytes")]
    TooBig {
        /// The limit.
        limit: usize,
    },
}

/// The header that a match looks at; Envoy's pseudo headers can be named like any other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderKey {
    /// `:method`.
    Method,
    /// `:authority`, also `host`.
    Authority,
    /// `:path`: path and query as sent on.
    Path,
    /// `:scheme`.
    Scheme,
    /// An ordinary header.
    Name(HeaderName),
}

impl HeaderKey {
    /// From its spelling in a resource; case does not matter.
    ///
    /// # Errors
    /// Not a header name.
    pub fn parse(name: &str) -> Result<Self, InvalidHeader> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            other => Self::Name(
                HeaderName::from_bytes(other.as_bytes())
                    .map_err(|_| InvalidHeader(name.chars().take(64).collect()))?,
            ),
        })
    }

    /// The value of the header in `request`; several are joined as Envoy joins them.
    #[must_use]
    pub fn value<'a>(&self, request: &RequestView<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Method => Some(Cow::Borrowed(request.method.as_str().as_bytes())),
            Self::Authority => Some(Cow::Borrowed(request.authority.as_bytes())),
            Self::Scheme => Some(Cow::Borrowed(request.scheme.as_bytes())),
            Self::Path => Some(match request.query {
                None => Cow::Borrowed(request.path.as_bytes()),
                Some(query) => Cow::Owned([request.path, "?", query].concat().into_bytes()),
            }),
            Self::Name(name) => joined(request.headers, name),
        }
    }
}

/// Not a header name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid header name")]
pub struct InvalidHeader(pub String);

/// All values of a header: borrowed when there is one, joined with `,` when there are more
/// (Envoy `HeaderUtility::getAllOfHeaderAsString`); cookies with `; ` (RFC 9113 section 8.2.3).
pub(crate) fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let separator: &[u8] = if name == http::header::COOKIE { b"; " } else { b"," };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.extend_from_slice(separator);
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_forms() {
        let m = StringMatch::wildcard;
        for (pattern, text, matches) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("*b", "b", true),
            ("*b", "ba", false),
            ("*", "", true),
            ("", "", true),
            ("a*b", "a*b", true),
            ("a*b", "axb", false),
        ] {
            assert_eq!(m(pattern).matches(text), matches, "{pattern} on {text}");
        }
        for (pattern, text, matches) in [
            ("Web", "wEB", true),
            ("Web*", "wEB:80", true),
            ("*.LOCAL", "a.local", true),
            ("*.local", "local", false),
            ("ä*", "Ä", false),
        ] {
            assert_eq!(m(pattern).matches_ignore_case(text), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn expressions_match_whole_texts() {
        let m = |p: &str| StringMatch::regex(p).unwrap();
        let jason = m("^(.*?;)?(user=jason)(;.*)?$");
        assert!(jason.matches("user=jason") && jason.matches("a=b;user=jason;c=d"));
        assert!(!jason.matches("user=jasonx"));
        assert!(m("a|ab").matches("ab") && !m("a").matches("xa") && !m("a").matches("ax"));
        assert!(m("(?i)abc").matches("ABC"));
        assert!(!m(".*").matches("a\nb") && !m("a$").matches("a\n"));
        assert!(m(r"\d+").matches("12") && !m(r"\d+").matches("١"), "classes are ASCII");
        assert!(m("..").matches_bytes(&[0xff, 0xfe]));
        assert_eq!(m("a"), m("a"));
        assert_ne!(m("a"), m("a|a"));
    }

    #[test]
    fn hostile_patterns_are_refused() {
        for bad in
            ["(", "a)|(b", "[", "a{1001}{1001}{1001}", r"(?P<x", r"\1", "(?=a)", "(?x) a # c"]
        {
            assert!(StringMatch::regex(bad).is_err(), "{bad:?} was taken");
        }
        let long = "a".repeat(MAX_PATTERN_LEN + 1);
        assert_eq!(
            StringMatch::regex(&long),
            Err(PatternError::TooLong { len: MAX_PATTERN_LEN + 1 })
        );
        // Linear time: this takes for ever where there is backtracking.
        let linear = StringMatch::regex("(a*)*(a*)*(a*)*b").unwrap();
        assert!(!linear.matches(&"a".repeat(100_000)));
    }

    #[test]
    fn header_keys() {
        assert_eq!(HeaderKey::parse("Host"), Ok(HeaderKey::Authority));
        assert_eq!(HeaderKey::parse(":Method"), Ok(HeaderKey::Method));
        assert!(matches!(HeaderKey::parse("End-User"), Ok(HeaderKey::Name(n)) if n == "end-user"));
        for bad in ["", ":status", "a b", "ä", "@request.auth.claims[x]"] {
            assert!(HeaderKey::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
