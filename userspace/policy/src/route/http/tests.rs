use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::route::{ClusterId, WeightedDestination};
use crate::testing::{Rng, chi_square};

fn exact(text: &str) -> Option<StringMatch> {
    Some(StringMatch::Exact(text.into()))
}

fn prefix(text: &str) -> Option<StringMatch> {
    Some(StringMatch::Prefix(text.into()))
}

fn regex(pattern: &str) -> Option<StringMatch> {
    Some(StringMatch::regex(pattern).unwrap())
}

fn header(name: &str, value: StringMatch) -> Box<[(HeaderKey, StringMatch)]> {
    [(HeaderKey::parse(name).unwrap(), value)].into()
}

fn route(name: &str, matches: Vec<HttpMatch>) -> HttpRoute {
    HttpRoute {
        name: name.into(),
        matches: matches.into(),
        action: HttpAction::NoCluster,
        filters: HttpFilters::default(),
    }
}

struct Request {
    method: Method,
    authority: &'static str,
    target: &'static str,
    headers: HeaderMap,
    labels: Labels,
    port: u16,
}

impl Request {
    fn get(target: &'static str) -> Self {
        Self {
            method: Method::GET,
            authority: "reviews:9080",
            target,
            headers: HeaderMap::new(),
            labels: Labels::default(),
            port: 9080,
        }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn select<'a>(&self, table: &'a HttpRouteTable) -> Option<&'a str> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target, None),
        };
        let request = RequestView {
            method: &self.method,
            scheme: "http",
            authority: self.authority,
            path,
            query,
            headers: &self.headers,
        };
        let source = SourceView {
            labels: &self.labels,
            namespace: "default",
            ip: IpAddr::from([10, 0, 0, 1]),
        };
        table.select(&request, &source, self.port).map(|s| &*s.route.name)
    }
}

fn one(m: HttpMatch) -> HttpRouteTable {
    HttpRouteTable { routes: [route("hit", vec![m])].into() }
}

fn hits(m: HttpMatch, request: Request) -> bool {
    request.select(&one(m)).is_some()
}

#[test]
fn first_match_wins_and_an_empty_list_matches_all() {
    let by_path = |p: &str| HttpMatch { path: prefix(p), ..HttpMatch::default() };
    let table = HttpRouteTable {
        routes: [
            route("a", vec![by_path("/a/b"), by_path("/x")]),
            route("b", vec![by_path("/a")]),
            route("rest", vec![]),
            route("never", vec![by_path("/")]),
        ]
        .into(),
    };
    for (path, want) in
        [("/a/b/c", "a"), ("/x", "a"), ("/a", "b"), ("/a/c", "b"), ("/", "rest"), ("/q", "rest")]
    {
        assert_eq!(Request::get(path).select(&table), Some(want), "{path}");
    }
    assert_eq!(Request::get("/").select(&HttpRouteTable::default()), None);
}

#[test]
fn thirty_paths() {
    let by = |path| HttpMatch { path, ..HttpMatch::default() };
    for (path, m, want) in [
        ("/a", exact("/a"), true),
        ("/a/", exact("/a"), false),
        ("/A", exact("/a"), false),
        ("/a?x=1", exact("/a"), true),
        ("/ab", exact("/a"), false),
        ("/", exact("/a"), false),
        ("/a", prefix("/a"), true),
        ("/ab", prefix("/a"), true),
        ("/a/b", prefix("/a/"), true),
        ("/a", prefix("/a/"), false),
        ("/A/b", prefix("/a"), false),
        ("/b?/a", prefix("/a"), false),
        ("/anything", prefix("/"), true),
        ("/a/1", regex("/a/[0-9]+"), true),
        ("/a/1x", regex("/a/[0-9]+"), false),
        ("/x/a/1", regex("/a/[0-9]+"), false),
        ("/a/1?q=x", regex("/a/[0-9]+"), true),
        ("/b", regex("/a|/b"), true),
        ("/bc", regex("/a|/b"), false),
        ("/a.b", regex(r"/a\.b"), true),
        ("/axb", regex(r"/a\.b"), false),
        ("/status/200", regex("/status/(200|204)"), true),
        ("/status/2000", regex("/status/(200|204)"), false),
        ("/a/b/c", regex("/a/.*/c"), true),
        ("/a//c", regex("/a/.+/c"), false),
        ("/a%20b", exact("/a%20b"), true),
        ("/a%20b", exact("/a b"), false),
        ("/a+b", exact("/a+b"), true),
        ("/a;b", prefix("/a;"), true),
        ("/a", None, true),
    ] {
        assert_eq!(hits(by(m.clone()), Request::get(path)), want, "{path} by {m:?}");
    }
    let folded = |path| HttpMatch { path, ignore_path_case: true, ..HttpMatch::default() };
    assert!(hits(folded(exact("/reviews")), Request::get("/REVIEWS")));
    assert!(hits(folded(prefix("/Reviews")), Request::get("/REVIEWS/1")));
    assert!(!hits(folded(regex("/reviews")), Request::get("/REVIEWS")));
}

#[test]
fn headers_and_cookies() {
    let by = |headers| HttpMatch { headers, ..HttpMatch::default() };
    let end_user = |m| by(header("end-user", m));
    let jason = || StringMatch::Exact("jason".into());
    assert!(hits(end_user(jason()), Request::get("/").header("end-user", "jason")));
    assert!(!hits(end_user(jason()), Request::get("/").header("end-user", "jasonx")));
    assert!(!hits(end_user(jason()), Request::get("/")));
    assert!(hits(end_user(StringMatch::Present), Request::get("/").header("end-user", "")));
    assert!(!hits(end_user(StringMatch::Present), Request::get("/")));
    let twice = || Request::get("/").header("x-v", "1").header("x-v", "2");
    assert!(hits(by(header("x-v", StringMatch::Exact("1,2".into()))), twice()));
    assert!(!hits(by(header("x-v", StringMatch::Exact("1".into()))), twice()));
    let cookie = || by(header("cookie", regex("^(.*?;)?( )?(user=dev-123)(;.*)?$").unwrap()));
    assert!(hits(cookie(), Request::get("/").header("cookie", "user=dev-123")));
    assert!(hits(cookie(), Request::get("/").header("cookie", "a=b; user=dev-123; c=d")));
    let split = Request::get("/").header("cookie", "a=b").header("cookie", "user=dev-123");
    assert!(hits(cookie(), split), "HTTP/2 splits cookies");
    assert!(!hits(cookie(), Request::get("/").header("cookie", "user=dev-1234")));
    let pseudo = |name: &str, m| hits(by(header(name, m)), Request::get("/p?q"));
    assert!(pseudo(":method", StringMatch::Exact("GET".into())));
    assert!(pseudo(":authority", StringMatch::Prefix("reviews".into())));
    assert!(pseudo("Host", StringMatch::Exact("reviews:9080".into())));
    assert!(pseudo(":path", StringMatch::Exact("/p?q".into())));
    assert!(!pseudo(":scheme", StringMatch::Exact("https".into())));
}

#[test]
fn without_headers() {
    let by = |m| HttpMatch { without_headers: header("x-v", m), ..HttpMatch::default() };
    let with = || Request::get("/").header("x-v", "1");
    assert!(!hits(by(StringMatch::Present), with()));
    assert!(hits(by(StringMatch::Present), Request::get("/")));
    assert!(!hits(by(StringMatch::Exact("1".into())), with()));
    assert!(hits(by(StringMatch::Exact("2".into())), with()));
    assert!(hits(by(StringMatch::Exact("1".into())), Request::get("/")));
    assert!(!hits(by(StringMatch::regex(".*").unwrap()), Request::get("/")), "missing is empty");
}

#[test]
fn query_parameters() {
    let by = |name: &str, m| HttpMatch {
        query_params: [(name.into(), m)].into(),
        ..HttpMatch::default()
    };
    let two = || StringMatch::Exact("2".into());
    for (target, want) in [
        ("/?v=2", true),
        ("/?a=1&v=2", true),
        ("/?v=2&v=3", true),
        ("/?v=3&v=2", false),
        ("/?%76=%32", true),
        ("/?v", false),
        ("/?vv=2", false),
        ("/?V=2", false),
        ("/v=2", false),
        ("/", false),
    ] {
        assert_eq!(hits(by("v", two()), Request::get(target)), want, "{target}");
    }
    assert!(hits(by("v", StringMatch::Present), Request::get("/?a&v&b")));
}

/// Every field alone, and the AND of all of them.
#[test]
fn fields_are_anded() {
    let labels: Labels = [("app", "web"), ("version", "v1")].into_iter().collect();
    let request = || Request { labels: labels.clone(), ..Request::get("/a") };
    let full = || HttpMatch {
        path: exact("/a"),
        scheme: exact("http"),
        method: exact("GET"),
        authority: exact("reviews:9080"),
        port: Some(9080),
        source_labels: [("version", "v1")].into_iter().collect(),
        source_namespace: Some("default".into()),
        ..HttpMatch::default()
    };
    assert!(hits(full(), request()));
    let wrong: [fn(&mut HttpMatch); 7] = [
        |m| m.path = exact("/b"),
        |m| m.scheme = exact("https"),
        |m| m.method = exact("POST"),
        |m| m.authority = exact("reviews"),
        |m| m.port = Some(80),
        |m| m.source_labels = [("version", "v2")].into_iter().collect(),
        |m| m.source_namespace = Some("other".into()),
    ];
    for (i, change) in wrong.iter().enumerate() {
        let mut m = full();
        change(&mut m);
        assert!(!hits(m, request()), "field {i}");
    }
}

#[test]
fn weights_hold_within_chi_square() {
    let destination = |(i, weight): (usize, &u32)| WeightedDestination {
        weight: *weight,
        cluster: ClusterId(i as u32),
        headers: Default::default(),
    };
    let weighted =
        |weights: &[u32]| Weighted::new(weights.iter().enumerate().map(destination).collect());
    let mut rng = Rng::new("weights_hold_within_chi_square");
    for weights in [&[80, 20][..], &[1, 1, 1, 97], &[0, 5, 0, 5], &[1], &[u32::MAX - 1, 1]] {
        let all = weighted(weights).unwrap();
        let mut counts = vec![0usize; weights.len()];
        for _ in 0..100_000 {
            counts[all.pick(rng.ticket()).cluster.0 as usize] += 1;
        }
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let (mut observed, mut expected) = (vec![], vec![]);
        for (count, weight) in counts.iter().zip(weights) {
            if *weight == 0 {
                assert_eq!(*count, 0, "{weights:?}");
            } else {
                observed.push(*count);
                expected.push(100_000.0 * f64::from(*weight) / total);
            }
        }
        if !weights.contains(&u32::MAX) {
            // The 99.99 % quantile for 3 degrees of freedom.
            assert!(chi_square(&observed, &expected) < 21.1, "{weights:?}: {counts:?}");
        }
    }
    assert_eq!(weighted(&[]), None);
    assert_eq!(weighted(&[0, 0]), None);
    assert_eq!(weighted(&[u32::MAX, 1]), None);
}
