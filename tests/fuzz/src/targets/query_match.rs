//! Matching requests by query parameter and header.

use std::net::IpAddr;

use fairlead_policy::matcher::{HeaderKey, StringMatch};
use fairlead_policy::route::HttpMatch;
use fairlead_policy::{RequestView, SourceView};
use fairlead_types::Labels;
use http::{HeaderMap, HeaderName, Method};

use crate::input;

/// A parameter is found exactly where it is written, decoded; a header's values are joined; and
/// `withoutHeaders` is the contrary of `headers` for what is there.
pub fn run(data: &[u8]) {
    let Some((wanted, rest)) = input::two_texts(data) else { return };
    let (query, headers) = rest.split_once('\n').unwrap_or((rest, ""));
    let headers = input::headers(headers.as_bytes());
    let labels = Labels::default();
    let source = SourceView { labels: &labels, namespace: "a", ip: IpAddr::from([10, 0, 0, 1]) };
    let request = RequestView {
        method: &Method::GET,
        scheme: "http",
        authority: "a",
        path: "/",
        query: Some(query),
        headers: &headers,
    };
    let matches = |one: HttpMatch| one.matches(&request, &source, 80);

    let (name, value) = wanted.split_once('=').unwrap_or((wanted, ""));
    let params = |m| HttpMatch { query_params: [(name.into(), m)].into(), ..HttpMatch::default() };
    let present = matches(params(StringMatch::Present));
    let exact = matches(params(StringMatch::Exact(value.into())));
    assert!(present || !exact, "what is not there matches");
    if !query.contains('%') {
        let first = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| *key == name);
        assert_eq!(present, first.is_some(), "{name:?} in {query:?}");
        assert_eq!(exact, first.is_some_and(|(_, v)| v == value), "{name:?} in {query:?}");
    }
    by_header(&headers, matches);
}

fn by_header(headers: &HeaderMap, matches: impl Fn(HttpMatch) -> bool) {
    let with = |key: HeaderKey, m| HttpMatch { headers: [(key, m)].into(), ..HttpMatch::default() };
    let without = |key: HeaderKey, m| HttpMatch {
        without_headers: [(key, m)].into(),
        ..HttpMatch::default()
    };
    for name in headers.keys() {
        let Ok(key @ HeaderKey::Name(_)) = HeaderKey::parse(name.as_str()) else { continue };
        assert!(matches(with(key.clone(), StringMatch::Present)));
        assert!(!matches(without(key.clone(), StringMatch::Present)));
        let separator = if name == "cookie" { "; " } else { "," };
        let values: Result<Vec<&str>, _> =
            headers.get_all(name).iter().map(|v| std::str::from_utf8(v.as_bytes())).collect();
        if let Ok(values) = values {
            let all = StringMatch::Exact(values.join(separator).into());
            assert!(matches(with(key.clone(), all.clone())), "{name}");
            assert!(!matches(without(key, all)), "{name}");
        }
    }
    let missing = HeaderName::from_static("x-nobody-sends-this");
    if !headers.contains_key(&missing) {
        let key = HeaderKey::Name(missing);
        assert!(!matches(with(key.clone(), StringMatch::Present)));
        assert!(matches(without(key, StringMatch::Present)));
    }
}
