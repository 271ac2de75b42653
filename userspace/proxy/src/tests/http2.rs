//! HTTP/2 and gRPC on one node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairlead_config::model::PeerWire;
use fairlead_policy::authz::Action;
use fairlead_types::AppProtocol;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{TestPod, World, policy, soon};

type Stream = StreamBody<
    std::pin::Pin<
        Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send>,
    >,
>;

/// Echoes each message as it comes, then trailers with `grpc-status` and the account it runs as.
fn echo(request: Request<Incoming>, name: &'static str) -> Response<Stream> {
    let body = request.into_body();
    let stream = futures_util::stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), Some(body))),
            _ => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                trailers.insert("grpc-message", name.parse().unwrap());
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    });
    let mut response = Response::new(StreamBody::new(Box::pin(stream) as _));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

pub(super) async fn app(
    world: &World,
    pod: &TestPod,
    name: &'static str,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let addr = world
        .listen(pod, move |stream, _| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let service =
                    service_fn(
                        move |r| async move { Ok::<_, std::convert::Infallible>(echo(r, name)) },
                    );
                let _ = server::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await;
    (addr, connections)
}

pub(super) async fn connect(pod: &TestPod, to: SocketAddr) -> client::SendRequest<Full<Bytes>> {
    let stream = pod.connect(to).await.unwrap();
    let (sender, connection) =
        client::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(super) fn grpc(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://echo/pkg.Echo/Call")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn grpc_is_balanced_by_request_and_keeps_its_trailers() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let (a, b) =
        (world.pod(0, "a", PeerWire::Native).await, world.pod(0, "b", PeerWire::Native).await);
    let (addr_a, connections) = app(&world, &a, "a").await;
    let (addr_b, _) = app(&world, &b, "b").await;
    let (vip, _) = world.service("echo", AppProtocol::Grpc, &[(&a, addr_a), (&b, addr_b)]);
    world.publish().await;
    let mut sender = connect(&client, vip).await;
    let mut by = [0, 0];
    for _ in 0..20 {
        let response = soon(sender.send_request(grpc("message"))).await.unwrap();
        assert_eq!(response.status(), 200);
        let collected = soon(response.into_body().collect()).await.unwrap();
        let trailers = collected.trailers().unwrap().clone();
        assert_eq!(trailers["grpc-status"], "0");
        by[usize::from(trailers["grpc-message"] == "b")] += 1;
        assert_eq!(collected.to_bytes(), "message");
    }
    assert_eq!(by, [10, 10], "one connection, requests to both");
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"0\"", "reporter=\"source\""];
    world.nodes[0].until_metric("istio_requests_total", &labels, 20).await;

    // A denial in gRPC's own terms.
    world.authz(&a, vec![policy(Action::Deny, &["*"], &["POST"])]);
    world.authz(&b, vec![policy(Action::Deny, &["*"], &["POST"])]);
    world.publish().await;
    let response = soon(sender.send_request(grpc("x"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["grpc-message"], "RBAC: access denied");
}

#[tokio::test]
async fn streams_flow_both_ways_at_once() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server, "s").await;
    let (vip, _) = world.service("echo", AppProtocol::Detect, &[(&server, addr)]);
    world.publish().await;
    ping_pong(&client, vip).await;
}

/// Sends a message only after the one before has come back.
pub(super) async fn ping_pong(pod: &TestPod, to: SocketAddr) {
    let stream = pod.connect(to).await.unwrap();
    let (mut sender, connection) =
        client::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (feed, messages) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = futures_util::stream::unfold(messages, |mut messages| async move {
        let message = messages.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(message)), messages))
    });
    let request = Request::post("http://echo/pkg.Echo/Stream")
        .header("content-type", "application/grpc")
        .body(StreamBody::new(Box::pin(body)))
        .unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let mut body = response.into_body();
    for n in 0..50 {
        feed.send(Bytes::from(format!("message {n}"))).await.unwrap();
        let frame = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("message {n}"));
    }
    drop(feed);
    let trailers = soon(body.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn http1_clients_reach_http2_servers() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server, "s").await;
    let (vip, _) = world.service("h2c", AppProtocol::Http2, &[(&server, addr)]);
    world.publish().await;
    let got = super::http1::raw(
        &client,
        vip,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    )
    .await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("abc"), "{got}");
}

/// Clients that do not read their answers leave room for the others on the connection that all
/// share to the application.
#[tokio::test]
async fn stalled_answers_leave_room_for_others() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, connections) = app(&world, &server, "s").await;
    let (vip, _) = world.service("echo", AppProtocol::Http2, &[(&server, addr)]);
    world.publish().await;
    let big = || {
        let body = Full::from(vec![7; 2 << 20]);
        Request::post("http://echo/big").version(Version::HTTP_2).body(body).unwrap()
    };
    let mut stalled = Vec::new();
    for _ in 0..30 {
        let mut sender = connect(&client, vip).await;
        let response = soon(sender.send_request(big())).await.unwrap();
        // Its head has come; its body is not read.
        stalled.push((response, sender));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut sender = connect(&client, vip).await;
    let response = soon(sender.send_request(grpc("message"))).await.unwrap();
    let got = soon(response.into_body().collect()).await.unwrap();
    assert_eq!(got.to_bytes(), "message");
    assert_eq!(connections.load(Ordering::Relaxed), 1, "they do share one");
    drop(stalled);
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_nothing_else() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server, "s").await;
    let (vip, _) = world.service("echo", AppProtocol::Grpc, &[(&server, addr)]);
    world.publish().await;
    let mut good = connect(&client, vip).await;
    let mut flood = client.connect(vip).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for n in 0..20_000u32 {
        let id = (n * 2 + 1).to_be_bytes();
        // HEADERS with :method GET, :scheme http, :path /, :authority a; then RST_STREAM.
        bytes.extend_from_slice(&[0, 0, 6, 1, 5]);
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&[0x82, 0x86, 0x84, 0x41, 0x01, b'a']);
        bytes.extend_from_slice(&[0, 0, 4, 3, 0]);
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&[0, 0, 0, 8]);
    }
    let (mut read, mut write) = flood.split();
    let drain = async {
        let mut sink = vec![0; 65536];
        while read.read(&mut sink).await.unwrap_or(0) > 0 {}
    };
    let send = async {
        let _ = write.write_all(&bytes).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(drain, send) })
        .await
        .expect("the connection was not ended");
    let response = soon(good.send_request(grpc("still"))).await.unwrap();
    assert_eq!(response.status(), 200);
}
