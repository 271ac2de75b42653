use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_types::WorkloadId;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::live::{Direction, Registry};

/// Longer than a client may take for a request's head.
const LONG: Duration = Duration::from_secs(3 * HEADER_TIME.as_secs());

/// A downstream connection whose requests `handle` answers.
fn serving<F, R>(http2: bool, handle: F) -> (DuplexStream, JoinHandle<Option<String>>)
where
    F: Fn(Request<Body>, Option<Switch>) -> R + Send + 'static,
    R: Future<Output = Response<Reported>> + Send + 'static,
{
    serving_until(http2, watch::channel(false).1, handle)
}

/// Likewise, of a daemon that drains one day.
fn serving_until<F, R>(
    http2: bool,
    drained: watch::Receiver<bool>,
    handle: F,
) -> (DuplexStream, JoinHandle<Option<String>>)
where
    F: Fn(Request<Body>, Option<Switch>) -> R + Send + 'static,
    R: Future<Output = Response<Reported>> + Send + 'static,
{
    let (client, server) = duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let registry = Arc::new(Registry::default());
        let (pod, addr) = (WorkloadId::new("a", "b"), ([10, 0, 0, 1], 1).into());
        let entry = registry.add(Direction::Outbound, &pod, addr, addr, None);
        serve((server, Bytes::new()), http2, &entry, drained, handle).await
    });
    (client, task)
}

/// Answers at once, and passes on what comes of the request's body.
fn listening(
    heard: mpsc::Sender<Bytes>,
) -> impl Fn(Request<Body>, Option<Switch>) -> std::future::Ready<Response<Reported>> {
    move |request, _| {
        let heard = heard.clone();
        // The response ends when the request has.
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                    && heard.send(data).await.is_err()
                {
                    return;
                }
            }
            drop(end);
        });
        let frames = futures_util::stream::once(async move {
            let _ = ended.await;
            Ok::<_, crate::body::BodyError>(http_body::Frame::data(Bytes::from_static(b"end")))
        });
        let body = Body::boxed(StreamBody::new(frames));
        std::future::ready(Response::new(Reported::silent(body)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_ends_the_connection() {
    let (mut client, served) = serving(false, |_, _| {
        std::future::ready(Response::new(Reported::silent(Body::full("yes"))))
    });
    // Waiting before the first request, and between requests, is free.
    for _ in 0..2 {
        sleep(LONG).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut got = [0; 128];
        let n = client.read(&mut got).await.unwrap();
        assert!(got[..n].starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(served.await.unwrap().unwrap().contains("request header timeout"));
}

#[tokio::test(start_paused = true)]
async fn after_a_switch_the_client_may_be_the_only_one_who_speaks() {
    let (heard, mut hears) = mpsc::channel(8);
    let (mut client, served) = serving(false, move |_, switch| {
        let heard = heard.clone();
        switch.unwrap().carry(move |client| async move {
            let mut client = TokioIo::new(client);
            let mut byte = [0];
            while client.read_exact(&mut byte).await.is_ok() {
                heard.send(byte[0]).await.unwrap();
            }
        });
        let mut response = Response::new(Reported::silent(Body::Empty));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        std::future::ready(response)
    });
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(head).await.unwrap();
    let mut got = [0; 128];
    let n = client.read(&mut got).await.unwrap();
    assert!(got[..n].starts_with(b"HTTP/1.1 101 "));
    for byte in 0..3 {
        client.write_all(&[byte]).await.unwrap();
        assert_eq!(hears.recv().await, Some(byte));
        sleep(LONG).await;
    }
    drop(client);
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_may_go_on_after_the_response_has_begun() {
    let (heard, mut hears) = mpsc::channel(8);
    let (mut client, _served) = serving(false, listening(heard));
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    client.write_all(head).await.unwrap();
    let mut got = [0; 256];
    let n = client.read(&mut got).await.unwrap();
    assert!(got[..n].starts_with(b"HTTP/1.1 200 OK\r\n"));
    for byte in [b"a", b"b", b"c"] {
        client.write_all(byte).await.unwrap();
        assert_eq!(hears.recv().await.as_deref(), Some(&byte[..]));
        sleep(LONG).await;
    }
}

#[tokio::test(start_paused = true)]
async fn http2_may_be_silent_for_long() {
    let (heard, mut hears) = mpsc::channel(8);
    let (client, served) = serving(true, listening(heard));
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(client))
        .await
        .unwrap();
    tokio::spawn(connection);
    // The last that the client said is that it has taken the settings.
    sleep(LONG).await;
    for _ in 0..2 {
        let (send, frames) = mpsc::channel::<Bytes>(1);
        let frames = futures_util::stream::unfold(frames, |mut frames| async move {
            let data = frames.recv().await?;
            Some((Ok::<_, crate::body::BodyError>(http_body::Frame::data(data)), frames))
        });
        let request = Request::post("http://a/").body(Body::boxed(StreamBody::new(frames)));
        let response = sender.send_request(request.unwrap()).await.unwrap();
        for _ in 0..3 {
            send.send(Bytes::from_static(b"message")).await.unwrap();
            assert_eq!(hears.recv().await.unwrap(), "message");
            sleep(LONG).await;
        }
        drop(send);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "end");
        sleep(LONG).await;
    }
    drop(sender);
    assert_eq!(served.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_drain_answers_one_more_request_of_an_idle_client() {
    let (draining, drained) = watch::channel(false);
    let yes = |_, _| std::future::ready(Response::new(Reported::silent(Body::full("yes"))));
    let (mut client, served) = serving_until(false, drained.clone(), yes);
    let (mut idle, idling) = serving_until(false, drained, yes);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for client in [&mut client, &mut idle] {
        client.write_all(request).await.unwrap();
        let mut got = [0; 128];
        let n = client.read(&mut got).await.unwrap();
        assert!(!String::from_utf8_lossy(&got[..n]).contains("close"));
    }
    draining.send_replace(true);
    let start = tokio::time::Instant::now();
    sleep(LAST_REQUEST / 2).await;
    client.write_all(request).await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("yes"), "{got}");
    assert!(got.contains("connection: close\r\n"), "{got}");
    assert!(served.await.unwrap().is_none());
    // Who says nothing is not waited for.
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert!(start.elapsed() < LAST_REQUEST + Duration::from_millis(10));
    assert!(idling.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_response_under_way_when_the_drain_begins_says_so_if_it_can() {
    let (draining, drained) = watch::channel(false);
    let slow = |_, _| async {
        sleep(Duration::from_secs(1)).await;
        Response::new(Reported::silent(Body::full("yes")))
    };
    let (mut client, _served) = serving_until(false, drained, slow);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(500)).await;
    draining.send_replace(true);
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(String::from_utf8(got).unwrap().contains("connection: close\r\n"));
}
