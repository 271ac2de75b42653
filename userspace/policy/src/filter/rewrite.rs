//! URI and authority rewriting (VirtualService `rewrite`).

use regex::bytes::{Captures, Regex};

use crate::matcher::{self, PatternError, StringMatch};
use crate::route::HttpMatch;

/// Longest path that a rewrite may produce; beyond it the request is answered 414.
pub const MAX_REWRITTEN_PATH: usize = 64 << 10;

/// `rewrite` of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// `uri` or `uriRegexRewrite`.
    pub path: Option<PathRewrite>,
    /// `authority`.
    pub authority: Option<Box<str>>,
}

/// How the path changes.
#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    /// `uri`: takes the place of what the route matched, of all of it when that was exact (Envoy
    /// `prefix_rewrite`); a path that matched a regular expression stays as it is.
    Uri(Box<str>),
    /// `uriRegexRewrite`: every match in the path is replaced (Envoy `regex_rewrite`).
    Regex(RegexRewrite),
}

/// `uriRegexRewrite`, compiled.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    pattern: Box<str>,
    substitution: Box<str>,
    regex: Regex,
    parts: Box<[Part]>,
}

/// A piece of a substitution.
#[derive(Clone, Debug)]
enum Part {
    Text(Box<str>),
    Group(usize),
}

impl RegexRewrite {
    /// Compiles `match` and `rewrite`; in the latter `\0` to `\9` name groups and `\\` is a
    /// backslash (RE2's substitution syntax).
    ///
    /// # Errors
    /// A malformed pattern, an unknown escape, or a group that the pattern does not have.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, RewriteError> {
        let regex = matcher::compile(pattern)?;
        let parts = parse_substitution(substitution, regex.captures_len() - 1)?;
        Ok(Self { pattern: pattern.into(), substitution: substitution.into(), regex, parts })
    }

    fn replace(&self, path: &str) -> Result<String, RewriteError> {
        let mut out = Vec::with_capacity(path.len());
        let mut at = 0;
        for captures in self.regex.captures_iter(path.as_bytes()) {
            let whole = captures.get_match();
            out.extend_from_slice(&path.as_bytes()[at..whole.start()]);
            self.substitute(&captures, &mut out);
            at = whole.end();
            if out.len() > MAX_REWRITTEN_PATH {
                return Err(RewriteError::TooLong);
            }
        }
        out.extend_from_slice(&path.as_bytes()[at..]);
        // The pattern works on bytes, so a group may have cut a character in two.
        String::from_utf8(out).map_err(|_| RewriteError::NotText)
    }

    fn substitute(&self, captures: &Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Group(n) => {
                    out.extend_from_slice(
                        captures.get(*n).map_or(&[][..], |group| group.as_bytes()),
                    );
                }
            }
        }
    }
}

impl PartialEq for RegexRewrite {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.substitution) == (&other.pattern, &other.substitution)
    }
}

fn parse_substitution(text: &str, groups: usize) -> Result<Box<[Part]>, RewriteError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            literal.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => literal.push('\\'),
            Some(digit @ '0'..='9') => {
                let group = digit as usize - '0' as usize;
                if group > groups {
                    return Err(RewriteError::Group { group, groups });
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Group(group));
            }
            other => return Err(RewriteError::Escape(other.map(String::from).unwrap_or_default())),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal.into()));
    }
    Ok(parts.into())
}

impl Rewrite {
    /// The new path (without query) of a request whose `path` was selected by `matched`; `None`
    /// when it stays as it is.
    ///
    /// # Errors
    /// The result is too long, or no text: the request must be refused.
    pub fn path(
        &self,
        path: &str,
        matched: Option<&HttpMatch>,
    ) -> Result<Option<String>, RewriteError> {
        let new = match &self.path {
            None => return Ok(None),
            Some(PathRewrite::Regex(rewrite)) => rewrite.replace(path)?,
            Some(PathRewrite::Uri(uri)) => match matched.and_then(|m| m.path.as_ref()) {
                // A route without a path match is Envoy's `prefix: "/"`.
                None => replace_prefix(path, 1, uri),
                Some(StringMatch::Prefix(prefix)) => replace_prefix(path, prefix.len(), uri),
                Some(StringMatch::Exact(_)) => String::from(&**uri),
                // Envoy rewrites nothing that it cannot call a prefix of the path.
                Some(_) => return Ok(None),
            },
        };
        if new.len() > MAX_REWRITTEN_PATH {
            return Err(RewriteError::TooLong);
        }
        Ok((new != path).then_some(new))
    }
}

/// `path` with its first `len` bytes replaced; bytes, not characters, as prefixes match.
fn replace_prefix(path: &str, len: usize, with: &str) -> String {
    // A prefix that matched without regard to case has the same length, ASCII being what folds.
    let rest = path.get(len..).unwrap_or_default();
    [with, rest].concat()
}

/// Why a rewrite was refused: by its configuration, or for one request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The pattern is not usable.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A backslash before something else than a digit or a backslash.
    #[error("\\{0} is not known in a substitution: \\0 to \\9 name groups, \\\\ is a backslash")]
    Escape(String),
    /// The pattern has fewer groups.
    #[error("\\{group} names a group, but the pattern has {groups}")]
    Group {
        /// The group that was named.
        group: usize,
        /// How many there are.
        groups: usize,
    },
    /// The rewritten path is longer than any server takes.
    #[error("the rewritten path exceeds {MAX_REWRITTEN_PATH} bytes")]
    TooLong,
    /// The pattern cut a character in two.
    #[error("the rewritten path is not text")]
    NotText,
}

#[cfg(test)]
mod tests;
