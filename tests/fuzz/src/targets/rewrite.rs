//! Rewrites of paths: by prefix, and by regular expression with substitution.

use fairlead_policy::filter::rewrite::{MAX_REWRITTEN_PATH, PathRewrite, RegexRewrite, Rewrite};
use fairlead_policy::matcher::StringMatch;
use fairlead_policy::route::HttpMatch;

use crate::input;

/// A rewrite stays within its bound; replacing what matches by itself changes nothing, and a
/// prefix gives way to exactly what takes its place.
pub fn run(data: &[u8]) {
    let Some((pattern, rest)) = input::two_texts(data) else { return };
    let (substitution, path) = rest.split_once('\n').unwrap_or((rest, "/"));
    match RegexRewrite::new(pattern, substitution) {
        Ok(regex) => {
            let rewrite = Rewrite { path: Some(PathRewrite::Regex(regex)), authority: None };
            match rewrite.path(path, None) {
                Ok(Some(new)) => assert!(new != path && new.len() <= MAX_REWRITTEN_PATH),
                Ok(None) => {}
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            let same = RegexRewrite::new(pattern, r"\0").expect("the pattern compiled");
            let same = Rewrite { path: Some(PathRewrite::Regex(same)), authority: None };
            if path.len() <= MAX_REWRITTEN_PATH {
                assert_eq!(same.path(path, None), Ok(None), "{pattern:?} on {path:?}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }

    let rewrite = Rewrite { path: Some(PathRewrite::Uri(substitution.into())), authority: None };
    let matched =
        HttpMatch { path: Some(StringMatch::Prefix(pattern.into())), ..HttpMatch::default() };
    if let Some(rest) = path.strip_prefix(pattern)
        && let Ok(new) = rewrite.path(path, Some(&matched))
    {
        assert_eq!(new.as_deref().unwrap_or(path), format!("{substitution}{rest}"));
    }
}
