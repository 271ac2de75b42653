//! Paths: their normal form, and the templates that match them.

use std::borrow::Cow;

use fairlead_policy::authz::PathMatch;
use fairlead_policy::authz::path::{MAX_PATH, Normalization, PathError, normalize};

use crate::input;

const MODES: [Normalization; 4] = [
    Normalization::None,
    Normalization::Base,
    Normalization::MergeSlashes,
    Normalization::DecodeAndMergeSlashes,
];

/// The normal form is one, and a server that decodes it once finds no dot segment, no
/// backslash and (where slashes merge) no empty segment that policy has not seen.
pub fn normal_form(data: &[u8]) {
    let Some(path) = input::text(data) else { return };
    for mode in MODES {
        match normalize(path, mode) {
            Ok(normal) => {
                assert!(normal.starts_with('/'));
                assert_eq!(matches!(normal, Cow::Owned(_)), *normal != *path, "{mode:?}");
                assert_eq!(normalize(&normal, mode).as_deref(), Ok(&*normal), "{mode:?} twice");
                if mode != Normalization::None {
                    judge(&normal, mode);
                }
            }
            Err(PathError::NotAbsolute) => assert!(!path.starts_with('/'), "{mode:?}"),
            Err(PathError::Nul) => assert!(path.contains("%00") || path.contains('\0')),
            Err(PathError::Fragment) => assert!(path.contains('#')),
            Err(PathError::TooLong) => assert!(path.len() > MAX_PATH),
        }
    }
}

fn judge(normal: &str, mode: Normalization) {
    assert!(normal.bytes().all(|b| b.is_ascii_graphic()), "{normal:?}");
    assert!(!normal.contains(['\\', '#', '?', '"', '<', '>']), "{normal:?}");
    assert!(!normal.split('/').any(|s| s == "." || s == ".."), "{mode:?}: {normal:?}");
    let lower = normal.to_ascii_lowercase();
    for hidden in ["%2e", "%61", "%41", "%7e", "%2d", "%5f", "%30", "%00"] {
        assert!(
            !lower.contains(hidden) || stray(&lower, hidden),
            "{mode:?}: {hidden} in {normal:?}"
        );
    }
    if matches!(mode, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes) {
        assert!(!normal.contains("//"), "{normal:?}");
    }
}

/// A percent sign that begins no escape keeps the escape that would complete it from being
/// decoded: `%2%65` stays, and is the only way for one to remain.
fn stray(normal: &str, escape: &str) -> bool {
    let bytes = normal.as_bytes();
    normal.match_indices(escape).all(|(at, _)| {
        let before = &bytes[at.saturating_sub(2)..at];
        before.contains(&b'%')
    })
}

/// A template of AuthorizationPolicy matches what trying every way of reading it matches.
pub fn template(data: &[u8]) {
    let Some((pattern, path)) = input::two_texts(data) else { return };
    // Trying is exponential; paths and templates of people are short.
    if pattern.len() > 128 || path.len() > 128 {
        let _ = PathMatch::parse(pattern).map(|one| one.matches(path));
        return;
    }
    match PathMatch::parse(pattern) {
        Ok(one @ PathMatch::Template(_)) => {
            assert!(pattern.starts_with('/'));
            assert_eq!(one.matches(path), matches(pattern, path), "{pattern:?} on {path:?}");
        }
        Ok(one @ PathMatch::Plain(_)) => {
            assert!(!pattern.contains("{*}") && !pattern.contains("{**}"));
            assert!(!one.matches(""), "CONNECT is in no positive list");
            if !pattern.contains('*') {
                assert_eq!(one.matches(path), pattern == path);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let stop = |c: char| matches!(c, '?' | '#');
    // Every end that the operator may have, beginning with the shortest.
    let ends = |least: usize, slash: bool| {
        let longest = path.find(|c| stop(c) || (c == '/' && !slash)).unwrap_or(path.len());
        (least..=longest).filter(|end| path.is_char_boundary(*end))
    };
    if let Some(rest) = pattern.strip_prefix("{**}") {
        return ends(0, true).any(|end| matches(rest, &path[end..]));
    }
    if let Some(rest) = pattern.strip_prefix("{*}") {
        return ends(1, false).any(|end| matches(rest, &path[end..]));
    }
    match (pattern.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(wanted), Some(have)) if wanted == have => {
            matches(&pattern[wanted.len_utf8()..], &path[have.len_utf8()..])
        }
        _ => false,
    }
}
