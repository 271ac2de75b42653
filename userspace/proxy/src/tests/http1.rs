//! HTTP/1 on one node: an application of hyper behind the data plane, raw bytes in front of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairlead_config::model::PeerWire;
use fairlead_types::AppProtocol;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{TestPod, World, soon};

/// What the application saw, as JSON: method, target, headers, body, client.
pub(super) async fn describe(
    request: Request<Incoming>,
    client: SocketAddr,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let headers: HashMap<_, _> = parts
        .headers
        .iter()
        .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    let seen = serde_json::json!({
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
        "client": client.to_string(),
    });
    let mut response = Response::new(Full::from(seen.to_string()));
    if let Some(status) = parts.headers.get("want-status") {
        *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
    }
    Ok(response)
}

/// An HTTP/1 application that counts its connections.
pub(super) async fn app(world: &World, pod: &TestPod) -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let addr = world
        .listen(pod, move |stream, client| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let service = service_fn(move |r| describe(r, client));
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await;
    (addr, connections)
}

/// Sends raw bytes and reads to the end of the connection.
pub(super) async fn raw(pod: &TestPod, to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = pod.connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let _ = soon(stream.read_to_end(&mut got)).await;
    String::from_utf8_lossy(&got).into_owned()
}

/// Reads one response with a `content-length`: head and body.
pub(super) async fn response(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            soon(stream.read(&mut byte)).await.unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    soon(stream.read_exact(&mut body)).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

pub(super) fn seen(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

pub(super) async fn one_service(
    protocol: AppProtocol,
) -> (World, TestPod, TestPod, SocketAddr, Arc<AtomicUsize>) {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, connections) = app(&world, &server).await;
    let (vip, _) = world.service("web", protocol, &[(&server, addr)]);
    world.publish().await;
    (world, client, server, vip, connections)
}

#[tokio::test]
async fn requests_keep_their_shape() {
    let (world, client, _server, vip, connections) = one_service(AppProtocol::Http).await;
    let mut stream = client.connect(vip).await.unwrap();
    for n in 0..3 {
        let request = format!(
            "POST /a//b/../c?q={n} HTTP/1.1\r\nHost: web\r\nX-CamelCase: Yes\r\n\
             x-forwarded-client-cert: URI=spiffe://forged\r\nConnection: keep-alive, x-hop\r\n\
             x-hop: 1\r\ntraceparent: 00-1-2-01\r\nX-B3-TraceId: 3\r\nContent-Length: 5\r\n\r\nhello"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("x-envoy-upstream-service-time: "), "{head}");
        let seen = seen(&body);
        assert_eq!(seen["uri"], format!("/a//c?q={n}"));
        assert_eq!((&seen["method"], &seen["body"]), (&"POST".into(), &"hello".into()));
        let headers = &seen["headers"];
        assert_eq!(headers["host"], "web");
        assert_eq!(headers["x-camelcase"], "Yes");
        assert_eq!(headers["traceparent"], "00-1-2-01");
        assert_eq!(headers["x-b3-traceid"], "3");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-envoy-attempt-count"], "1");
        assert_eq!(headers["x-request-id"].as_str().unwrap().len(), 36);
        assert!(headers["x-hop"].is_null() && headers["connection"].is_null(), "{headers}");
        assert_eq!(headers["x-forwarded-client-cert"], world.nodes[0].xfcc("server", "client"));
        assert_eq!(
            seen["client"].as_str().unwrap().split(':').next(),
            Some(&*client.ip.to_string())
        );
    }
    drop(stream);
    assert_eq!(connections.load(Ordering::Relaxed), 1, "the connection to the application is kept");
    let log = world.nodes[0].log(3).await;
    assert_eq!(log[0]["path"], "/a//b/../c?q=0", "the log has what the client sent");
    assert_eq!(log[0]["response_code"], 200);
    assert_eq!(log[0]["bytes_received"], 5);
    assert_eq!(log[0]["upstream_cluster"], "outbound|80||web.default.svc.cluster.local");
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let labels = [
            reporter,
            "response_code=\"200\"",
            "request_protocol=\"http\"",
            "destination_workload=\"server\"",
            "source_workload=\"client\"",
        ];
        world.nodes[0].until_metric("istio_requests_total", &labels, 3).await;
    }
    let mtls = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
    assert_eq!(world.nodes[0].metric("istio_requests_total", &mtls), 3);
}

#[tokio::test]
async fn header_case_is_kept() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world
        .listen(&server, |mut stream, _| async move {
            let mut buf = vec![0; 4096];
            let n = stream.read(&mut buf).await.unwrap();
            let head = String::from_utf8_lossy(&buf[..n]).into_owned();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nX-ReplyCase: 1\r\nContent-Length: {}\r\n\r\n{head}",
                head.len()
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        })
        .await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.publish().await;
    let got =
        raw(&client, vip, b"GET / HTTP/1.1\r\nHost: a\r\nX-MyCase: 1\r\nConnection: close\r\n\r\n")
            .await;
    assert!(got.contains("X-ReplyCase: 1") && got.contains("X-MyCase: 1"), "{got}");
}

#[tokio::test]
async fn http10_chunked_head_and_continue() {
    let (_world, client, _server, vip, _) = one_service(AppProtocol::Http).await;
    let got = raw(&client, vip, b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.0 200 OK\r\n"), "{got}");
    let (_, body) = got.split_once("\r\n\r\n").unwrap();
    assert_eq!(seen(body)["headers"]["host"], vip.to_string());

    let mut stream = client.connect(vip).await.unwrap();
    let chunked = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    stream.write_all(chunked.as_bytes()).await.unwrap();
    assert_eq!(seen(&response(&mut stream).await.1)["body"], "abcde");

    stream
        .write_all(
            b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        )
        .await
        .unwrap();
    assert_eq!(response(&mut stream).await.0, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").await.unwrap();
    assert_eq!(seen(&response(&mut stream).await.1)["body"], "ok");

    stream.write_all(b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = vec![0; 4096];
    let n = soon(stream.read(&mut head)).await.unwrap();
    let head = String::from_utf8_lossy(&head[..n]).into_owned();
    assert!(head.contains("content-length: ") && head.ends_with("\r\n\r\n"), "{head}");
    // And the connection is still in step.
    stream.write_all(b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(seen(&response(&mut stream).await.1)["uri"], "/after");
}

#[tokio::test]
async fn detection_finds_http() {
    let (world, client, _server, vip, _) = one_service(AppProtocol::Detect).await;
    let mut stream = client.connect(vip).await.unwrap();
    stream.write_all(b"GET /d HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(seen(&response(&mut stream).await.1)["uri"], "/d");
    drop(stream);
    // A client that is slow to begin gets HTTP all the same.
    let mut stream = client.connect(vip).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(seen(&response(&mut stream).await.1)["uri"], "/slow");
    drop(stream);
    let labels = ["reporter=\"source\"", "response_code=\"200\""];
    world.nodes[0].until_metric("istio_requests_total", &labels, 2).await;
}

#[tokio::test]
async fn an_application_that_closes_idle_connections_disturbs_nobody() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world
        .listen(&server, |mut stream, _| async move {
            // Announces keep-alive, answers once, closes when the next request has begun.
            let mut buf = vec![0; 4096];
            let _ = stream.read(&mut buf).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        })
        .await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.publish().await;
    let mut stream = client.connect(vip).await.unwrap();
    for n in 0..60u64 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "request {n}: {head}");
        tokio::time::sleep(Duration::from_micros(n * 97 % 4500)).await;
    }
}

#[tokio::test]
async fn websocket_like_upgrades_and_connect() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, switching).await;
    let dead = SocketAddr::new(server.ip, 1);
    let endpoints = [(&server, dead), (&server, addr)];
    let (vip, _) = world.service("ws", AppProtocol::Http, &endpoints);
    world.publish().await;
    switch(&client, vip).await;
    let log = world.nodes[0].log(2).await;
    assert_eq!(log[0]["response_code"], 101);
    assert_eq!(log[0]["bytes_received"], 4);
    assert_eq!(log[1]["method"], "CONNECT");
}

/// An application that switches to an echo.
pub(super) async fn switching(mut stream: TcpStream, _: SocketAddr) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let reply: &[u8] = if head.starts_with("CONNECT db:543") {
        b"HTTP/1.1 200 OK\r\n\r\n"
    } else if head.contains("upgrade: websocket\r\n") || head.contains("Upgrade: websocket\r\n") {
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    } else {
        b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"
    };
    let _ = stream.write_all(reply).await;
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

pub(super) async fn switch(client: &TestPod, vip: SocketAddr) {
    for (request, status) in [
        ("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "101"),
        ("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", "200"),
    ] {
        let mut stream = client.connect(vip).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        stream.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        soon(stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"ping");
        stream.shutdown().await.unwrap();
        assert_eq!(soon(stream.read(&mut got)).await.unwrap(), 0);
    }
}
