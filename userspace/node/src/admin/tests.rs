use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn bind() -> Server {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    Server::from_std(listener).unwrap()
}

async fn start(pages: Pages) -> SocketAddr {
    let server = bind();
    let address = server.address();
    tokio::spawn(server.serve(pages));
    address
}

/// Sends a raw request and returns everything until the server closes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn send(address: SocketAddr, method: &str, target: &str, more: &str) -> (u16, String) {
    let request =
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n");
    let answer = raw(address, &request).await;
    let status = answer[9..12].parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn pages() -> Pages {
    Pages::default()
        .page("/echo", "Says what it was asked.", |q| {
            Reply::text(200, format!("{} {:?}", q.method, q.get("x")))
        })
        .page("/json", "JSON.", |_| Reply::json(503, &serde_json::json!({"a": [1]})))
        .page("/many", "Pieces.", |_| {
            Reply::pieces("text/plain", (0..1000).map(|i| format!("{i}\n")))
        })
}

#[tokio::test]
async fn pages_answer() {
    let address = start(pages()).await;
    assert_eq!(send(address, "GET", "/echo?y=1&x=a%20b+c", "").await.1, "GET Some(\"a b c\")");
    assert_eq!(send(address, "POST", "/echo", "").await.1, "POST None");
    let (status, body) = send(address, "GET", "/json", "").await;
    assert_eq!((status, body.as_str()), (503, "{\n  \"a\": [\n    1\n  ]\n}\n"));
    let (status, index) = send(address, "GET", "/", "").await;
    assert_eq!(status, 200);
    assert!(index.contains("/echo") && index.contains("Says what it was asked."));
    assert_eq!(send(address, "GET", "/nothing", "").await.0, 404);
    assert_eq!(send(address, "DELETE", "/echo", "").await.0, 405);
    let (status, body) = send(address, "HEAD", "/echo", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    let body = send(address, "GET", "/many", "").await.1;
    assert!(body.contains("999\n"), "chunked, to its end");
}

#[tokio::test]
async fn web_pages_of_elsewhere_are_not_answered() {
    let address = start(pages()).await;
    for (host, expected) in [
        ("localhost:15000", "200"),
        ("127.0.0.1", "200"),
        ("127.0.0.1:80", "200"),
        ("[::1]:80", "200"),
        ("evil.example", "403"),
        ("localhost.evil.example", "403"),
        ("10.0.0.1:80", "403"),
        ("[fd00::1]", "403"),
    ] {
        let request = format!("GET /echo HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(&raw(address, &request).await[9..12], expected, "{host}");
    }
    let origin = "origin: http://evil.example\r\n";
    assert_eq!(send(address, "POST", "/echo", origin).await.0, 403);
}

#[tokio::test]
async fn hostile_heads_are_refused_and_others_served() {
    let address = start(pages()).await;
    let long = format!("GET /echo?{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(raw(address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(send(address, "GET", "/echo", "").await.0, 200);
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = bind().with_header_timeout(Duration::from_millis(100));
    let address = server.address();
    tokio::spawn(server.serve(pages()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /echo HTTP/1.1\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    assert!(read.await.is_ok(), "still open");
}

#[tokio::test]
async fn a_page_that_is_slow_to_read_is_made_as_it_is_read() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let address = start(Pages::default().page("/big", "Big.", move |_| {
        let counter = Arc::clone(&counter);
        Reply::pieces(
            "text/plain",
            (0..100_000).map(move |_| {
                counter.fetch_add(1, Ordering::SeqCst);
                "x".repeat(64 * 1024)
            }),
        )
    }))
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let so_far = made.load(Ordering::SeqCst);
    assert!(so_far > 0 && so_far < 5_000, "{so_far} pieces were made for a reader that waits");
}

#[tokio::test]
async fn whoever_reads_nothing_is_given_up() {
    let endless = Pages::default().page("/endless", "Without end.", |_| {
        Reply::pieces("text/plain", std::iter::repeat_with(|| "x".repeat(1 << 16)))
    });
    let server = bind().with_write_timeout(Duration::from_millis(200));
    let address = server.address();
    tokio::spawn(server.serve(endless));
    // As many as are served at a time, none of which reads.
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        idle.push(stream);
    }
    let next = tokio::time::timeout(Duration::from_secs(20), send(address, "GET", "/", ""));
    assert_eq!(next.await.expect("nobody was given up").0, 200);
}

#[tokio::test]
async fn what_all_may_see_is_served_under_any_name_and_changes_nothing() {
    let server = bind().for_anybody();
    let address = server.address();
    tokio::spawn(server.serve(pages()));
    let get = "GET /echo?x=1 HTTP/1.1\r\nhost: 10.0.0.1:15020\r\nconnection: close\r\n\r\n";
    let answer = raw(address, get).await;
    assert!(&answer[9..12] == "200" && answer.ends_with("GET None"), "{answer}");
    assert_eq!(send(address, "POST", "/echo", "").await.0, 405);
}
