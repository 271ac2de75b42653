//! Wildcards and regular expressions of routes and rules.

use fairlead_policy::matcher::{FullRegex, HeaderKey, StringMatch};

use crate::input;

/// A wildcard matches what its spelling says; a regular expression matches whole texts, and no
/// pattern takes the compiler or the matcher beyond its bounds.
pub fn run(data: &[u8]) {
    let Some((pattern, text)) = input::two_texts(data) else { return };
    let wildcard = StringMatch::wildcard(pattern);
    let star = |text: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(suffix), _) => text.ends_with(suffix),
        (None, Some(prefix)) => text.starts_with(prefix),
        (None, None) => text == pattern,
    };
    assert_eq!(wildcard.matches(text), star(text), "{wildcard:?}");
    if wildcard.matches(text) {
        assert!(wildcard.matches_ignore_case(text));
    }
    let upper = text.to_ascii_uppercase();
    assert_eq!(wildcard.matches_ignore_case(text), wildcard.matches_ignore_case(&upper));

    match FullRegex::new(pattern) {
        Ok(regex) => {
            let matched = regex.matches(text.as_bytes());
            assert_eq!(regex, FullRegex::new(regex.pattern()).expect("it compiled before"));
            // An alternative that matches nothing changes nothing, unless flags reach into it.
            if !pattern.contains("(?") {
                let grouped = FullRegex::new(&format!("({pattern})"));
                if let Ok(grouped) = grouped {
                    assert_eq!(grouped.matches(text.as_bytes()), matched, "grouping matters");
                }
            }
            let literal = pattern.bytes().all(|b| b.is_ascii_alphanumeric());
            if literal {
                assert_eq!(matched, text == pattern);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(HeaderKey::Name(name)) = HeaderKey::parse(pattern) {
        assert_eq!(name.as_str(), pattern.to_ascii_lowercase());
    }
}
