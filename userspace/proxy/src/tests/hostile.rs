//! Hostile clients: what they get, and that the application sees one meaning only.

use std::time::{Duration, Instant};

use fairlead_config::model::PeerWire;
use fairlead_types::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{World, soon};
use super::http1::{one_service, raw, response};

#[tokio::test]
async fn smuggling_is_refused_or_has_one_meaning() {
    let (world, client, _server, vip, _) = one_service(AppProtocol::Http).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (what, head, refused) in [
        (
            "length and chunked",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            true,
        ),
        (
            "chunked and length",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
            true,
        ),
        ("bare LF", "X: a\nContent-Length: 0\r\n\r\n", true),
        ("a head that ends with a bare LF", "Content-Length: 0\r\n\n", true),
        ("two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", true),
        ("a list of lengths", "Content-Length: 1, 2\r\n\r\nab", true),
        ("signed length", "Content-Length: +1\r\n\r\na", true),
        ("obs-fold", "X: a\r\n b\r\nContent-Length: 0\r\n\r\n", true),
        ("space before colon", "Content-Length : 5\r\n\r\n", true),
        ("chunked is not last", "Transfer-Encoding: chunked, gzip\r\n\r\n", true),
        ("unknown coding", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", true),
        ("two hosts", "Host: b\r\nContent-Length: 0\r\n\r\n", true),
        ("nul in a value", "X: a\0b\r\nContent-Length: 0\r\n\r\n", true),
    ] {
        let request = format!("POST /first HTTP/1.1\r\nHost: a\r\n{head}{smuggled}");
        let got = raw_closing(&client, vip, &request).await;
        assert!(!got.contains("/smuggled"), "{what}: {got}");
        if refused {
            assert!(got.starts_with("HTTP/1.1 400"), "{what}: {got}");
        }
    }
    let log: String = world.nodes[0].plane.connections().iter().map(|c| format!("{c:?}")).collect();
    assert!(!log.contains("smuggled"));
}

/// The answer is not lost to a client that goes on sending: no reset overtakes it.
#[tokio::test]
async fn a_refused_head_is_answered_while_the_client_goes_on() {
    let (world, client, _server, vip, _) = one_service(AppProtocol::Http).await;
    let stream = client.connect(vip).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sending = tokio::spawn(async move {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 100\r\n\r\n";
        for byte in head.bytes().chain([b'a'; 100]) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut got = Vec::new();
    soon(read.read_to_end(&mut got)).await.unwrap();
    let got = String::from_utf8_lossy(&got);
    assert!(got.starts_with("HTTP/1.1 400") && got.matches("HTTP/1.1").count() == 1, "{got}");
    sending.await.unwrap();
    let log = world.nodes[0].log(1).await;
    assert_eq!(log[0]["response_flags"], "DPE");
    assert!(log[0].to_string().contains("bare LF"), "{}", log[0]);
}

/// The client stops sending after the request, so that the connection ends.
async fn raw_closing(
    pod: &super::harness::TestPod,
    to: std::net::SocketAddr,
    request: &str,
) -> String {
    let mut stream = pod.connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    // An answer, and what else comes.
    let _ = soon(stream.read_buf(&mut got)).await;
    let _ = tokio::time::timeout(Duration::from_millis(300), stream.read_to_end(&mut got)).await;
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test]
async fn oversized_and_slow_headers() {
    let (world, client, _server, vip, _) = one_service(AppProtocol::Http).await;
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(70 * 1024));
    assert!(raw(&client, vip, big.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(200));
    assert!(raw(&client, vip, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let garbage = raw(&client, vip, b"\x00\x01\x02garbage\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");

    let mut slow = client.connect(vip).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    // An idle connection beside it is not disturbed.
    let mut idle = client.connect(vip).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    response(&mut idle).await;
    let began = Instant::now();
    let mut got = Vec::new();
    let _ = soon(slow.read_to_end(&mut got)).await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(response(&mut idle).await.0.starts_with("HTTP/1.1 200"));
    drop(idle);
    let log = world.nodes[0].log(6).await;
    let flags: Vec<_> = log.iter().map(|l| l["response_flags"].as_str().unwrap()).collect();
    assert_eq!(flags, ["DPE", "DPE", "DPE", "-", "DPE", "-"]);
    assert!(log[4].to_string().contains("request header timeout"), "{}", log[4]);
}

#[tokio::test]
async fn a_broken_application_is_not_the_clients_fault() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let garbage = world
        .listen(&server, |mut s: tokio::net::TcpStream, _| async move {
            let mut buf = [0; 1024];
            let _ = s.read(&mut buf).await;
            let _ = s.write_all(b"nonsense\r\n\r\n").await;
        })
        .await;
    let closing = world
        .listen(&server, |mut s: tokio::net::TcpStream, _| async move {
            let mut buf = [0; 1024];
            let _ = s.read(&mut buf).await;
        })
        .await;
    let dead = std::net::SocketAddr::new(server.ip, 1);
    let (garbage, _) = world.service("garbage", AppProtocol::Http, &[(&server, garbage)]);
    let (closing, _) = world.service("closing", AppProtocol::Http, &[(&server, closing)]);
    let (dead, _) = world.service("dead", AppProtocol::Http, &[(&server, dead)]);
    let (empty, _) = world.service("empty", AppProtocol::Http, &[]);
    world.publish().await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for (vip, status, text) in [
        (garbage, "HTTP/1.1 502", "protocol error"),
        (closing, "HTTP/1.1 503", "connection termination"),
        (dead, "HTTP/1.1 503", "connection failure"),
        (empty, "HTTP/1.1 503", "no healthy upstream"),
    ] {
        let got = raw(&client, vip, get).await;
        assert!(got.starts_with(status) && got.contains(text), "{got}");
    }
    let log = world.nodes[0].log(4).await;
    let flags: Vec<_> = log.iter().map(|l| l["response_flags"].as_str().unwrap()).collect();
    assert_eq!(flags, ["UPE", "UC", "UF", "UH"]);
}
