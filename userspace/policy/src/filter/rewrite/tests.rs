use super::*;

fn uri(to: &str) -> Rewrite {
    Rewrite { path: Some(PathRewrite::Uri(to.into())), authority: None }
}

fn matched(path: Option<StringMatch>) -> HttpMatch {
    HttpMatch { path, ..HttpMatch::default() }
}

/// As Envoy's `prefix_rewrite` under the routes that Istio makes of each kind of match.
#[test]
fn uri_depends_on_what_matched() {
    let prefix = |p: &str| Some(StringMatch::Prefix(p.into()));
    for (path, by, to, new) in [
        ("/reviews/1", prefix("/reviews"), "/v2/reviews", Some("/v2/reviews/1")),
        ("/reviews/1", prefix("/reviews/"), "/", Some("/1")),
        ("/reviews/1", prefix("/reviews"), "/", Some("//1")),
        ("/reviewsX", prefix("/reviews"), "/x", Some("/xX")),
        ("/reviews", prefix("/reviews"), "/reviews", None),
        ("/a/b", Some(StringMatch::Exact("/a/b".into())), "/c", Some("/c")),
        ("/a/b", Some(StringMatch::regex("/a/.*").unwrap()), "/c", None),
        ("/a/b", None, "/c/", Some("/c/a/b")),
        ("/a/b", None, "/c", Some("/ca/b")),
    ] {
        let m = matched(by);
        assert_eq!(uri(to).path(path, Some(&m)).unwrap().as_deref(), new, "{path} by {m:?}");
    }
    assert_eq!(uri("/c/").path("/a", None).unwrap().as_deref(), Some("/c/a"), "a catch-all");
    let mut folded = matched(prefix("/ReViews"));
    folded.ignore_path_case = true;
    assert_eq!(uri("/x").path("/reviews/1", Some(&folded)).unwrap().as_deref(), Some("/x/1"));
    assert_eq!(Rewrite::default().path("/a", None), Ok(None));
}

fn regex(pattern: &str, to: &str, path: &str) -> Result<Option<String>, RewriteError> {
    let path_rewrite = PathRewrite::Regex(RegexRewrite::new(pattern, to)?);
    Rewrite { path: Some(path_rewrite), authority: None }.path(path, None)
}

/// The examples of Envoy's `regex_rewrite` and Istio's `uriRegexRewrite`.
#[test]
fn regex_with_groups() {
    for (pattern, to, path, new) in [
        (
            "^/service/([^/]+)(/.*)$",
            r"\2/instance/\1",
            "/service/foo/v1/api",
            "/v1/api/instance/foo",
        ),
        ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
        ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
        ("^/a(b)?", r"/[\1]", "/ac", "/[]c"),
        ("a", r"\0\\", "/a", r"/a\"),
        ("b*", "-", "/a", "-/-a-"),
    ] {
        assert_eq!(regex(pattern, to, path).unwrap().as_deref(), Some(new), "{pattern}");
    }
    assert_eq!(regex("x", "y", "/a"), Ok(None));
}

#[test]
fn refused() {
    assert!(matches!(regex("(", "x", "/"), Err(RewriteError::Pattern(_))));
    assert_eq!(regex("(a)", r"\2", "/"), Err(RewriteError::Group { group: 2, groups: 1 }));
    assert!(matches!(regex("a", r"\x", "/"), Err(RewriteError::Escape(_))));
    assert!(matches!(regex("a", r"x\", "/"), Err(RewriteError::Escape(_))));
    assert_eq!(regex("a", &"x".repeat(2000), &"a".repeat(100)), Err(RewriteError::TooLong));
    assert_eq!(regex(r"(.)$", r"x\1", "/ä"), Err(RewriteError::NotText));
}
