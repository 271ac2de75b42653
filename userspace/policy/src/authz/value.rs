//! The values that rules compare with, each in the spelling of AuthorizationPolicy.

use fairlead_types::{SpiffeId, TrustDomain};

use crate::matcher::{FullRegex, PatternError, StringMatch};

/// `x` and `notX` of one attribute: one of `any` has to match unless there is none, and none of
/// `none` may.
#[derive(Clone, Debug, PartialEq)]
pub struct Values<T> {
    /// The positive list; empty: no condition.
    pub any: Box<[T]>,
    /// The negative list.
    pub none: Box<[T]>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { any: Box::default(), none: Box::default() }
    }
}

impl<T> Values<T> {
    /// From both lists.
    #[must_use]
    pub fn new(any: Vec<T>, none: Vec<T>) -> Self {
        Self { any: any.into(), none: none.into() }
    }

    /// Whether there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    /// Whether an attribute that `test` compares satisfies both lists.
    pub fn satisfied(&self, mut test: impl FnMut(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&mut test)) && !self.none.iter().any(test)
    }
}

/// `principals` and `source.principal`: `<trust domain>/ns/<namespace>/sa/<account>`, exact,
/// `prefix*`, `*suffix` or `*` (any authenticated peer).
#[derive(Clone, Debug, PartialEq)]
pub struct PrincipalMatch {
    pattern: StringMatch,
}

impl PrincipalMatch {
    /// Parses one entry. One that names a trust domain of the mesh (`trust_domains`: its own and
    /// the aliases) or `cluster.local` stands for the same account in all of them (Istio
    /// `trustdomain.Bundle`), hence a list.
    ///
    /// # Errors
    /// Empty, or with the scheme, which Istio would never match.
    pub fn parse(value: &str, trust_domains: &[TrustDomain]) -> Result<Vec<Self>, ValueError> {
        if value.is_empty() || value.starts_with("spiffe://") {
            return Err(ValueError::new("principal", value));
        }
        Ok(expand_trust_domain(value, trust_domains)
            .iter()
            .map(|value| Self { pattern: StringMatch::wildcard(value) })
            .collect())
    }

    /// Whether `peer` is meant.
    #[must_use]
    pub fn matches(&self, peer: &SpiffeId) -> bool {
        match &self.pattern {
            StringMatch::Present => true,
            StringMatch::Exact(want) => bytes(peer).eq(want.bytes()),
            StringMatch::Prefix(want) => {
                let mut have = bytes(peer);
                want.bytes().all(|b| have.next() == Some(b))
            }
            StringMatch::Suffix(want) => {
                let mut have = bytes(peer).rev();
                want.bytes().rev().all(|b| have.next() == Some(b))
            }
            StringMatch::Regex(regex) => regex.matches(peer.principal().as_bytes()),
        }
    }
}

/// The principal byte by byte, so that comparing it allocates nothing.
fn bytes(peer: &SpiffeId) -> impl DoubleEndedIterator<Item = u8> {
    [peer.trust_domain().as_str(), "/ns/", peer.namespace(), "/sa/", peer.service_account()]
        .into_iter()
        .flat_map(str::bytes)
}

/// The spellings of `principal` in all trust domains of the mesh, when it names one of them.
fn expand_trust_domain(principal: &str, trust_domains: &[TrustDomain]) -> Vec<String> {
    let as_is = || vec![principal.to_owned()];
    let Some((head, rest)) = principal.split_once('/') else { return as_is() };
    if rest.split('/').count() != 4 {
        return as_is();
    }
    let suffix = head.strip_prefix('*');
    let named = |td: &TrustDomain| match suffix {
        Some(suffix) => td.as_str().ends_with(suffix),
        None => td.as_str() == head,
    };
    if head != "cluster.local" && !trust_domains.iter().any(named) {
        return as_is();
    }
    let mut all = Vec::new();
    for td in trust_domains {
        let spelling = match suffix {
            Some(_) if named(td) => principal.to_owned(),
            _ => format!("{td}/{rest}"),
        };
        if !all.contains(&spelling) {
            all.push(spelling);
        }
    }
    if all.is_empty() { as_is() } else { all }
}

/// `namespaces` and `source.namespace`: `*` stands for any text, anywhere in the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceMatch {
    pattern: Box<str>,
}

impl NamespaceMatch {
    /// Parses one entry.
    ///
    /// # Errors
    /// Empty, or no namespace name even with `*` filled in.
    pub fn parse(value: &str) -> Result<Self, ValueError> {
        let legal =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'*');
        if value.is_empty() || value.len() > 253 || !value.bytes().all(legal) {
            return Err(ValueError::new("namespace", value));
        }
        Ok(Self { pattern: value.into() })
    }

    /// Whether `namespace` is meant.
    #[must_use]
    pub fn matches(&self, namespace: &str) -> bool {
        let Some((head, mut rest)) = self.pattern.split_once('*') else {
            return *self.pattern == *namespace;
        };
        let Some(mut text) = namespace.strip_prefix(head) else { return false };
        // Each further piece is taken at its first place, which leaves most for those after it.
        while let Some((piece, after)) = rest.split_once('*') {
            let Some(at) = text.find(piece) else { return false };
            text = &text[at + piece.len()..];
            rest = after;
        }
        text.ends_with(rest)
    }
}

/// `serviceAccounts`: `<account>` in the policy's namespace, or `<namespace>/<account>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    namespace: Box<str>,
    account: Box<str>,
}

impl ServiceAccountMatch {
    /// Parses one entry of a policy that lives in `policy_namespace`.
    ///
    /// # Errors
    /// Empty parts, too many, or a wildcard, which Istio does not allow here.
    pub fn parse(value: &str, policy_namespace: &str) -> Result<Self, ValueError> {
        let (namespace, account) = value.split_once('/').unwrap_or((policy_namespace, value));
        if namespace.is_empty()
            || account.is_empty()
            || account.contains('/')
            || value.contains('*')
        {
            return Err(ValueError::new("service account", value));
        }
        Ok(Self { namespace: namespace.into(), account: account.into() })
    }

    /// Whether `peer` is meant; the trust domain does not matter.
    #[must_use]
    pub fn matches(&self, peer: &SpiffeId) -> bool {
        *self.namespace == *peer.namespace() && *self.account == *peer.service_account()
    }
}

/// `trustDomains` and `source.trustDomain`: exact, `prefix*`, `*suffix` or `*`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustDomainMatch {
    pattern: StringMatch,
}

impl TrustDomainMatch {
    /// Parses one entry. One that names a trust domain of the mesh stands for all of them (Istio
    /// `Bundle.ExpandTrustDomainAliases`), hence a list.
    ///
    /// # Errors
    /// Empty.
    pub fn parse(value: &str, trust_domains: &[TrustDomain]) -> Result<Vec<Self>, ValueError> {
        if value.is_empty() {
            return Err(ValueError::new("trust domain", value));
        }
        let exact = |td: &TrustDomain| Self { pattern: StringMatch::Exact(td.as_str().into()) };
        if trust_domains.iter().any(|td| td.as_str() == value) {
            return Ok(trust_domains.iter().map(exact).collect());
        }
        Ok(vec![Self { pattern: StringMatch::wildcard(value) }])
    }

    /// Whether `peer` is of it.
    #[must_use]
    pub fn matches(&self, peer: &SpiffeId) -> bool {
        self.pattern.matches(peer.trust_domain().as_str())
    }
}

/// `paths`: exact, `prefix*`, `*suffix`, `*`, or a template with `{*}` and `{**}`.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// The plain forms.
    Plain(StringMatch),
    /// A template.
    Template(FullRegex),
}

impl PathMatch {
    /// Parses one entry. In a template `{*}` is one segment that is not empty and `{**}` any
    /// number of them, also none; only literal text may follow `{**}` (Istio
    /// `CheckValidPathTemplate`).
    ///
    /// Unlike Envoy's URI templates, `{*}` takes every character that a segment may have: there
    /// `=` and `*` in a segment would have slipped past a DENY.
    ///
    /// # Errors
    /// A template that is malformed.
    pub fn parse(value: &str) -> Result<Self, ValueError> {
        if value.is_empty() {
            return Err(ValueError::new("path", value));
        }
        if !value.contains("{*}") && !value.contains("{**}") {
            return Ok(Self::Plain(StringMatch::wildcard(value)));
        }
        template(value).map(Self::Template)
    }

    /// Whether the normalized `path` (without query) matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            // Istio's `*` is `.+`: CONNECT, which has no path, is in no positive list.
            Self::Plain(pattern) => !path.is_empty() && pattern.matches(path),
            Self::Template(regex) => regex.matches(path.as_bytes()),
        }
    }
}

fn template(value: &str) -> Result<FullRegex, ValueError> {
    let malformed = || ValueError::new("path template", value);
    if !value.starts_with('/') {
        return Err(malformed());
    }
    let mut pattern = String::new();
    let mut after_any = false;
    for (i, segment) in value.split('/').enumerate() {
        if i > 0 {
            pattern.push('/');
        }
        let (operator, literal) = match segment {
            s if s.starts_with("{**}") => ("[^?#]*", &s[4..]),
            s if s.starts_with("{*}") => ("[^/?#]+", &s[3..]),
            s => ("", s),
        };
        // A literal behind an operator (`{**}.html`) is allowed in the last segment only.
        let last = value.split('/').count() == i + 1;
        let stray = literal.contains(['{', '}', '*']);
        if stray
            || (after_any && !operator.is_empty())
            || (!operator.is_empty() && !literal.is_empty() && !last)
        {
            return Err(malformed());
        }
        after_any |= segment.starts_with("{**}");
        pattern.push_str(operator);
        pattern.push_str(&regex::escape(literal));
    }
    FullRegex::new(&pattern).map_err(|error| ValueError {
        what: "path template",
        value: value.chars().take(128).collect(),
        source: Some(error),
    })
}

/// A value that is not of the form that its field wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}")]
pub struct ValueError {
    /// What it should have been.
    pub what: &'static str,
    /// What it is.
    pub value: String,
    /// The error of the pattern that it became.
    pub source: Option<PatternError>,
}

impl ValueError {
    fn new(what: &'static str, value: &str) -> Self {
        Self { what, value: value.chars().take(128).collect(), source: None }
    }
}
