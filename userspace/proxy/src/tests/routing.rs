//! Routes: matches, weights, faults, rewrites, timeouts, retries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fairlead_config::model::{OutboundPolicy, PeerWire};
use fairlead_policy::Percentage;
use fairlead_policy::filter::HttpFilters;
use fairlead_policy::filter::fault::{Abort, AbortWith, Delay, Fault};
use fairlead_policy::filter::headers::{Direction, HeaderEdit, HeaderOps};
use fairlead_policy::filter::retry::{RetryOn, RetryPolicy};
use fairlead_policy::filter::rewrite::{PathRewrite, Rewrite};
use fairlead_policy::matcher::StringMatch;
use fairlead_policy::route::{
    ClusterId, HttpAction, HttpMatch, HttpRoute, HttpRouteTable, Weighted, WeightedDestination,
};
use fairlead_types::AppProtocol;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{TestPod, World, soon};
use super::http1::{app, raw, response, seen};

fn to(cluster: ClusterId, weight: u32) -> WeightedDestination {
    WeightedDestination { weight, cluster, headers: HeaderOps::default() }
}

fn route(name: &str, prefix: &str, destinations: Vec<WeightedDestination>) -> HttpRoute {
    let path = (!prefix.is_empty()).then(|| StringMatch::Prefix(prefix.into()));
    HttpRoute {
        name: name.into(),
        matches: Box::new([HttpMatch { path, ..HttpMatch::default() }]),
        action: HttpAction::Forward(Weighted::new(destinations).unwrap()),
        filters: HttpFilters::default(),
    }
}

fn table(routes: Vec<HttpRoute>) -> Option<HttpRouteTable> {
    Some(HttpRouteTable { routes: routes.into() })
}

/// Answers every request on its connections with what `reply` says of its number.
async fn scripted<F>(world: &World, pod: &TestPod, reply: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize) -> (Duration, u16) + Send + Sync + 'static,
{
    let requests = Arc::new(AtomicUsize::new(0));
    let (count, reply) = (Arc::clone(&requests), Arc::new(reply));
    let addr = world
        .listen(pod, move |mut stream: TcpStream, _| {
            let (count, reply) = (Arc::clone(&count), Arc::clone(&reply));
            async move {
                let mut head = Vec::new();
                loop {
                    let mut byte = [0];
                    if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
                    if let Some(length) =
                        text.lines().find_map(|l| l.strip_prefix("content-length: "))
                    {
                        let mut body = vec![0; length.parse().unwrap()];
                        let _ = stream.read_exact(&mut body).await;
                    }
                    let (wait, status) = reply(count.fetch_add(1, Ordering::Relaxed));
                    tokio::time::sleep(wait).await;
                    let attempt = text
                        .lines()
                        .find_map(|l| l.strip_prefix("x-envoy-attempt-count: "))
                        .unwrap_or("none")
                        .to_owned();
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{attempt}",
                        attempt.len()
                    );
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    head.clear();
                }
            }
        })
        .await;
    (addr, requests)
}

async fn get(pod: &TestPod, to: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    let got = raw(pod, to, request.as_bytes()).await;
    let status = got.split(' ').nth(1).unwrap_or_else(|| panic!("{got}")).parse().unwrap();
    (status, got.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn first_match_weights_rewrites_and_headers() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let (one, two) =
        (world.pod(0, "one", PeerWire::Native).await, world.pod(0, "two", PeerWire::Native).await);
    let (a, _) = app(&world, &one).await;
    let (b, _) = scripted(&world, &two, |_| (Duration::ZERO, 202)).await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&one, a), (&two, b)]);
    let (v1, v2) = (world.subset(vip, "v1", &[(&one, a)]), world.subset(vip, "v2", &[(&two, b)]));
    let mut rewritten = route("rewritten", "/api/", vec![to(v1, 1)]);
    rewritten.filters.rewrite = Some(Rewrite {
        path: Some(PathRewrite::Uri("/v1/".into())),
        authority: Some("inner.example".into()),
    });
    rewritten.filters.headers = HeaderOps {
        request: HeaderEdit::new(Direction::Request, [("x-set", "1")], [], ["x-gone"]).unwrap(),
        response: HeaderEdit::new(Direction::Response, [], [("x-answer", "2")], []).unwrap(),
    };
    world.routes(
        vip,
        table(vec![
            route("second", "/two", vec![to(v2, 1)]),
            rewritten,
            route("split", "/split", vec![to(v1, 25), to(v2, 75)]),
        ]),
        None,
    );
    world.publish().await;
    assert_eq!(get(&client, vip, "/two").await.0, 202);
    assert_eq!(get(&client, vip, "/nowhere").await.0, 404);
    let got = raw(
        &client,
        vip,
        b"GET /api/x?y HTTP/1.1\r\nHost: web\r\nx-gone: 1\r\nConnection: close\r\n\r\n",
    )
    .await;
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("x-answer: 2"), "{head}");
    let headers = &seen(body)["headers"];
    assert_eq!(seen(body)["uri"], "/v1/x?y");
    assert_eq!((&headers["host"], &headers["x-set"]), (&"inner.example".into(), &"1".into()));
    assert_eq!(headers["x-envoy-original-path"], "/api/x?y");
    assert!(headers["x-gone"].is_null());
    let log = world.nodes[0].log(3).await;
    assert_eq!(log[0]["route_name"], "second");
    assert_eq!(log[1]["response_flags"], "NR");
    let mut count = 0;
    let mut stream = client.connect(vip).await.unwrap();
    for _ in 0..400 {
        stream.write_all(b"GET /split HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        count += usize::from(response(&mut stream).await.0.starts_with("HTTP/1.1 202"));
    }
    assert!((255..345).contains(&count), "{count} of 400 at weight 75");
}

#[tokio::test]
async fn faults() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, requests) = scripted(&world, &server, |_| (Duration::ZERO, 200)).await;
    let (vip, cluster) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    let mut delayed = route("delayed", "/delay", vec![to(cluster, 1)]);
    delayed.filters.fault = Some(Fault {
        delay: Some(Delay { fixed: Duration::from_millis(150), percentage: Percentage::ALL }),
        abort: None,
    });
    let mut aborted = route("aborted", "/abort", vec![to(cluster, 1)]);
    aborted.filters.fault = Some(Fault {
        delay: None,
        abort: Some(Abort {
            with: AbortWith::Http(StatusCode::IM_A_TEAPOT),
            percentage: Percentage::ALL,
        }),
    });
    world.routes(vip, table(vec![delayed, aborted]), None);
    world.publish().await;
    let began = Instant::now();
    assert_eq!(get(&client, vip, "/delay").await.0, 200);
    assert!(began.elapsed() >= Duration::from_millis(150));
    assert_eq!(get(&client, vip, "/abort").await, (418, "fault filter abort".into()));
    assert_eq!(requests.load(Ordering::Relaxed), 1);
    let log = world.nodes[0].log(2).await;
    assert_eq!(
        (&log[0]["response_flags"], &log[1]["response_flags"]),
        (&"DI".into(), &"FI".into())
    );
}

#[tokio::test]
async fn timeouts_and_retries() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (slow, _) = scripted(&world, &server, |_| (Duration::from_secs(5), 200)).await;
    let (flaky, flaky_count) =
        scripted(&world, &server, |n| (Duration::ZERO, if n % 3 == 2 { 200 } else { 503 })).await;
    let (vip, all) = world.service("web", AppProtocol::Http, &[(&server, slow), (&server, flaky)]);
    let only_slow = world.subset(vip, "slow", &[(&server, slow)]);
    let only_flaky = world.subset(vip, "flaky", &[(&server, flaky)]);
    let retry = |attempts, on, per_try| RetryPolicy {
        attempts,
        per_try_timeout: per_try,
        retry_on: RetryOn::parse(on).unwrap(),
        ..RetryPolicy::default()
    };
    let mut timed = route("timed", "/timed", vec![to(only_slow, 1)]);
    timed.filters.timeout = Some(Duration::from_millis(200));
    let mut retried = route("retried", "/retried", vec![to(only_flaky, 1)]);
    retried.filters.retry = Some(retry(2, "5xx", None));
    let mut few = route("few", "/few", vec![to(only_flaky, 1)]);
    few.filters.retry = Some(retry(1, "5xx", None));
    let mut per_try = route("per-try", "/per-try", vec![to(all, 1)]);
    per_try.filters.retry = Some(retry(3, "5xx", Some(Duration::from_secs(1))));
    world.routes(vip, table(vec![timed, retried, few, per_try]), None);
    world.publish().await;

    let began = Instant::now();
    assert_eq!(get(&client, vip, "/timed").await, (504, "upstream request timeout".into()));
    let took = began.elapsed();
    assert!((190..4000).contains(&took.as_millis()), "{took:?}");
    // Two failures, then success: the application sees the third try. With a body, too.
    assert_eq!(get(&client, vip, "/retried").await, (200, "3".into()));
    let got = raw(
        &client,
        vip,
        b"POST /retried HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    )
    .await;
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("\r\n\r\n3"), "{got}");
    assert_eq!(get(&client, vip, "/few").await, (503, "2".into()));
    assert_eq!(flaky_count.load(Ordering::Relaxed), 8);
    assert_eq!(get(&client, vip, "/per-try").await.0, 200);
    let log = world.nodes[0].log(5).await;
    assert_eq!(log[0]["response_flags"], "UT");
}

#[tokio::test]
async fn connect_failures_are_retried_elsewhere_by_default() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = scripted(&world, &server, |_| (Duration::ZERO, 200)).await;
    let dead = SocketAddr::new(server.ip, 1);
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, dead), (&server, addr)]);
    world.publish().await;
    for _ in 0..10 {
        assert_eq!(get(&client, vip, "/").await.0, 200);
    }
}

#[tokio::test]
async fn registry_only_answers_http_with_502() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    world.mesh(|mesh| mesh.outbound = OutboundPolicy::RegistryOnly);
    world.publish().await;
    let unknown: SocketAddr = "127.0.0.1:9".parse().unwrap();
    assert_eq!(soon(get(&client, unknown, "/")).await.0, 502);
    let log = world.nodes[0].log(1).await;
    assert_eq!(log[0]["response_code"], 502);
}
