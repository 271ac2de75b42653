//! A parsed request over the native transport: what arrives, what cannot be forged, what
//! cancels what.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_proxy::body::{Body, BodyError};
use fairlead_proxy::transport::{TransportError, UpgradeOutcome};
use fairlead_types::Refusal;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::support::{App, Pair, WithTrailers, meta, within};

async fn pair() -> Pair {
    Pair::new(Wire::Native, App::refusing(Refusal::Deny).into()).await
}

async fn send(pair: &Pair, request: Request<Body>) -> Result<Response<Body>, TransportError> {
    within("response", pair.client.transport.request(&pair.target, &meta(), request)).await
}

/// A body that is fed by the test.
struct Fed(mpsc::Receiver<Result<Bytes, BodyError>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|r| r.map(Frame::data)))
    }
}

fn fed() -> (mpsc::Sender<Result<Bytes, BodyError>>, Body) {
    let (tx, rx) = mpsc::channel(4);
    (tx, Body::boxed(Fed(rx)))
}

#[tokio::test]
async fn a_request_arrives_as_the_application_sent_it() {
    let pair = pair().await;
    let request = Request::post("/reviews/7?full=1")
        .version(Version::HTTP_11)
        .header("host", "reviews:9080")
        .header("x-tag", "a")
        .header("x-tag", "b")
        .header("connection", "keep-alive, x-hop")
        .header("keep-alive", "timeout=5")
        .header("x-hop", "1")
        .header("te", "trailers, deflate")
        .body(Body::full("hello"))
        .unwrap();
    let response = send(&pair, request).await.unwrap();
    let seen = response.headers();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen["seen-method"], "POST");
    assert_eq!(seen["seen-uri"], "/reviews/7?full=1");
    assert_eq!(seen["seen-version"], "HTTP/1.1");
    assert_eq!(seen["seen-host"], "reviews:9080");
    assert_eq!(seen.get_all("seen-x-tag").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(seen["seen-te"], "trailers");
    for hop in ["seen-connection", "seen-keep-alive", "seen-x-hop"] {
        assert!(!seen.contains_key(hop), "{hop}");
    }
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let stream = pair.server.app.seen.lock().unwrap()[0].clone();
    assert_eq!((stream.client, stream.dst.0), (meta().client, pair.server.addr));
}

#[tokio::test]
async fn transport_headers_cannot_be_forged_by_either_application() {
    let pair = pair().await;
    let request = Request::get("/")
        .header("host", "reviews")
        .header("fairlead-client", "10.9.9.9:1")
        .header("fairlead-dst", "10.9.9.9:1")
        .header("fairlead-anything", "1")
        .body(Body::Empty)
        .unwrap();
    let response = send(&pair, request).await.unwrap();
    let leaked: Vec<_> = response
        .headers()
        .keys()
        .filter(|n| n.as_str().starts_with("seen-fairlead") || n.as_str().starts_with("fairlead"))
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    assert_eq!(pair.server.app.seen.lock().unwrap()[0].client, meta().client);
}

#[tokio::test]
async fn versions_and_hosts_survive() {
    let pair = pair().await;
    for (version, host) in
        [(Version::HTTP_10, None), (Version::HTTP_11, Some("")), (Version::HTTP_2, Some("a:1"))]
    {
        let mut request = Request::get("/v").version(version).body(Body::Empty).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let response = send(&pair, request).await.unwrap();
        assert_eq!(response.headers()["seen-version"], format!("{version:?}").as_str());
        let seen = response.headers().get("seen-host").map(|h| h.to_str().unwrap());
        assert_eq!(seen, host.filter(|h| !h.is_empty()));
    }
    let star = Request::builder().method(Method::OPTIONS).uri("*").header("host", "a");
    let response = send(&pair, star.body(Body::Empty).unwrap()).await.unwrap();
    assert_eq!(response.headers()["seen-uri"], "*");
    // Two hosts are a smuggling attempt, not a choice.
    let two = Request::get("/").header("host", "a").header("host", "b");
    let error = send(&pair, two.body(Body::Empty).unwrap()).await.err().unwrap();
    assert!(matches!(error, TransportError::Request(_)), "{error}");
}

#[tokio::test]
async fn trailers_travel_both_ways() {
    let pair = pair().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("fairlead-forged", "1".parse().unwrap());
    let body = WithTrailers { data: Some("data".into()), trailers: Some(trailers) };
    let request = Request::post("/").header("host", "a").body(Body::boxed(body)).unwrap();
    let response = send(&pair, request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    assert_eq!(collected.to_bytes(), "data");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let pair = pair().await;
    let (tx, body) = fed();
    let request = Request::post("/stream").header("host", "a").body(body).unwrap();
    let response = send(&pair, request).await.unwrap();
    let mut body = response.into_body();
    for i in 0..5 {
        let word = format!("message {i}");
        tx.send(Ok(word.clone().into())).await.unwrap();
        let frame = within("frame", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(tx);
    let end = within("end", body.frame()).await;
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_large_body_is_paced_by_its_reader() {
    let pair = pair().await;
    let (tx, body) = fed();
    let request = Request::post("/stream").header("host", "a").body(body).unwrap();
    let response = send(&pair, request).await.unwrap();
    // Nobody reads the response, so the sender comes to a halt within the windows.
    let mut sent = 0;
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(500), tx.send(Ok(chunk.clone()))).await
    {
        result.unwrap();
        sent += chunk.len();
        assert!(sent < 8 << 20, "no back-pressure");
    }
    // And goes on when somebody reads.
    let reading = tokio::spawn(async move { response.into_body().collect().await.unwrap() });
    for _ in 0..64 {
        within("send", tx.send(Ok(chunk.clone()))).await.unwrap();
        sent += chunk.len();
    }
    drop(tx);
    let got = within("body", reading).await.unwrap().to_bytes();
    assert_eq!(got.len(), sent);
}

#[tokio::test]
async fn an_early_answer_ends_the_wait_for_continue() {
    let pair = pair().await;
    let (tx, body) = fed();
    let request = Request::post("/no-body")
        .header("host", "a")
        .header("expect", "100-continue")
        .body(body)
        .unwrap();
    let response = send(&pair, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    drop(tx);
}

#[tokio::test]
async fn the_body_is_polled_only_after_continue() {
    struct Watched(Option<Bytes>, std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl http_body::Body for Watched {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.1.store(true, Ordering::Relaxed);
            Poll::Ready(self.0.take().map(|b| Ok(Frame::data(b))))
        }
    }
    let pair = pair().await;
    // The application wants the body: 100 comes, the body goes, the answer follows.
    let polled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let body = Body::boxed(Watched(Some("payload".into()), polled.clone()));
    let request = Request::post("/").header("host", "a").header("expect", "100-continue");
    let response = send(&pair, request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "payload");
    assert!(polled.load(Ordering::Relaxed));
    // The application never asks for it: nobody touches the body.
    let polled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let body = Body::boxed(Watched(Some("payload".into()), polled.clone()));
    let request = Request::post("/hang").header("host", "a").header("expect", "100-continue");
    let request = request.body(body).unwrap();
    let transport = &pair.client.transport;
    let hung = tokio::time::timeout(
        Duration::from_millis(300),
        transport.request(&pair.target, &meta(), request),
    )
    .await;
    assert!(hung.is_err());
    assert!(!polled.load(Ordering::Relaxed), "the body was read without 100 (Continue)");
}

#[tokio::test]
async fn cancelling_reaches_the_other_side_and_frees_the_place() {
    let pair = pair().await;
    for _ in 0..3 {
        let request = Request::get("/hang").header("host", "a").body(Body::Empty).unwrap();
        let transport = &pair.client.transport;
        let hung = tokio::time::timeout(
            Duration::from_millis(100),
            transport.request(&pair.target, &meta(), request),
        )
        .await;
        assert!(hung.is_err());
    }
    within("places", async {
        while pair.client.transport.sessions()[0].streams > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // The session is as good as before.
    let request = Request::get("/").header("host", "a").body(Body::Empty).unwrap();
    assert_eq!(send(&pair, request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(pair.server.sessions(), 1);
}

#[tokio::test]
async fn a_broken_upload_is_a_broken_body_for_the_application() {
    let pair = pair().await;
    let (tx, body) = fed();
    let request = Request::post("/stream").header("host", "a").body(body).unwrap();
    let response = send(&pair, request).await.unwrap();
    tx.send(Ok("half".into())).await.unwrap();
    let mut body = response.into_body();
    assert!(within("data", body.frame()).await.unwrap().unwrap().is_data());
    tx.send(Err(BodyError::Filter("cut off"))).await.unwrap();
    // The echoed body breaks too, rather than looking complete.
    let last = within("reset", body.frame()).await.unwrap();
    assert!(last.is_err());
}

#[tokio::test]
async fn websocket_upgrades_are_carried() {
    let pair = pair().await;
    let request = Request::get("/chat?room=1")
        .header("host", "chat")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(())
        .unwrap();
    let transport = &pair.client.transport;
    let outcome = within("upgrade", transport.upgrade(&pair.target, &meta(), request)).await;
    let Ok(UpgradeOutcome::Switched(response, mut tunnel)) = outcome else { panic!("declined") };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert_eq!(response.headers()["seen-upgrade"], "websocket");
    assert_eq!(response.headers()["seen-uri"], "/chat?room=1");
    tunnel.write_all(b"frame").await.unwrap();
    let mut buf = [0; 5];
    within("echo", tunnel.read_exact(&mut buf)).await.unwrap();
    assert_eq!(&buf, b"frame");
    tunnel.shutdown().await.unwrap();
    assert_eq!(within("end", tunnel.read(&mut buf)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_response() {
    let pair = pair().await;
    let request = Request::get("/declined")
        .header("host", "chat")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(())
        .unwrap();
    let outcome = pair.client.transport.upgrade(&pair.target, &meta(), request).await;
    let Ok(UpgradeOutcome::Declined(response)) = outcome else { panic!("switched") };
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let body = within("body", response.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "no sockets here");
}

#[tokio::test]
async fn an_applications_connect_is_carried() {
    let pair = pair().await;
    let request =
        Request::connect("db.example:5432").header("host", "db.example:5432").body(()).unwrap();
    let outcome = pair.client.transport.upgrade(&pair.target, &meta(), request).await;
    let Ok(UpgradeOutcome::Switched(response, mut tunnel)) = outcome else { panic!("declined") };
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["seen-uri"], "db.example:5432");
    tunnel.write_all(b"bytes").await.unwrap();
    within("echo", tunnel.read_exact(&mut [0; 5])).await.unwrap();
}
