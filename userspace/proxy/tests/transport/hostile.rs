//! What a hostile or broken peer can do: nothing that others notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_proxy::transport::{TransportError, limits};
use fairlead_types::Refusal;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hbone::foreign;
use crate::support::{App, Node, Server, TestCa, echo_app, id, meta, target, within};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

struct Scene {
    ca: TestCa,
    app: Arc<App>,
    server: Server,
    good: Node,
    _node: Node,
}

impl Scene {
    async fn new() -> Self {
        let ca = TestCa::new();
        let app = App::relaying_to(echo_app().await);
        let node = Node::new(ca.ca.clone(), &[id("server")], Duration::from_secs(3600)).await;
        let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;
        let good = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
        Self { ca, app, server, good, _node: node }
    }

    /// Somebody with a mesh certificate and bad intentions.
    async fn insider(&self) -> h2::client::SendRequest<Bytes> {
        let config = foreign::client_config(self.identity(), &[b"fairlead/1"]);
        foreign::session(config, self.server.addr).await
    }

    fn identity(&self) -> foreign::Identity {
        foreign::identity(&self.ca, CLIENT)
    }

    /// Everybody else is served.
    async fn others_are_fine(&self) {
        let to = target(Wire::Native, id("client"), self.server.addr, &[id("server")]);
        let mut tunnel = within("tunnel", self.good.transport.tunnel(&to, &meta())).await.unwrap();
        tunnel.write_all(b"word").await.unwrap();
        within("echo", tunnel.read_exact(&mut [0; 4])).await.unwrap();
    }
}

fn connect(to: SocketAddr, client: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(to.to_string())
        .header("fairlead-client", client)
        .body(())
        .unwrap()
}

#[tokio::test]
async fn garbage_and_foreign_tls_get_nothing() {
    let scene = Scene::new().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff, 0, 0, 0, 0, 0],
        &[0; 4096],
        &[0xff; 4096],
    ] {
        let mut tcp = TcpStream::connect(scene.server.addr).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        // A TLS alert at most, then the end.
        let _ = within("end", tcp.read_to_end(&mut answer)).await;
        assert!(answer.len() < 64, "{} bytes in answer to garbage", answer.len());
        assert!(answer.is_empty() || answer[0] == 21, "not an alert: {answer:?}");
    }
    assert!(scene.app.seen.lock().unwrap().is_empty());
    scene.others_are_fine().await;
}

#[tokio::test]
async fn half_open_tls_is_ended_in_time() {
    let scene = Scene::new().await;
    let mut idle = TcpStream::connect(scene.server.addr).await.unwrap();
    let mut half = TcpStream::connect(scene.server.addr).await.unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
    scene.others_are_fine().await;
    let started = Instant::now();
    for tcp in [&mut idle, &mut half] {
        let _ = within("end", tcp.read(&mut [0; 64])).await;
    }
    let took = started.elapsed();
    let limit = limits::HANDSHAKE_TIMEOUT;
    assert!(took > limit / 2 && took < limit + Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn tls_1_2_a_missing_certificate_and_a_foreign_alpn_are_refused() {
    let scene = Scene::new().await;
    // TLS 1.2 only. The mesh's build of rustls cannot speak it, so the hello is written by
    // hand: legacy version 1.2, no supported_versions.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16]);
    hello.extend([0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(hello.len() + 4).unwrap().to_be_bytes());
    record.extend([1, 0, 0, u8::try_from(hello.len()).unwrap()]);
    record.extend(hello);
    let mut tcp = TcpStream::connect(scene.server.addr).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("alert", tcp.read_to_end(&mut answer)).await;
    assert_eq!(answer.first(), Some(&21), "no alert: {answer:?}");
    let error = scene.server.error().await;
    assert_eq!(error.refusal(), Refusal::TlsFailure);
    assert!(error.to_string().contains("does not speak TLS 1.3"), "{error}");

    // No certificate.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut anonymous = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(scene.identity().roots)
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![b"fairlead/1".to_vec()];
    anonymous.dangerous().set_certificate_verifier(foreign::anybody());
    let mut tls = foreign::connect(anonymous, scene.server.addr).await.unwrap();
    let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(within("alert", tls.read(&mut [0; 64])).await.is_err());
    // ALPN of somebody else.
    let config = foreign::client_config(scene.identity(), &[b"http/1.1"]);
    assert!(foreign::connect(config, scene.server.addr).await.is_err());
    let errors = scene.server.errors.lock().unwrap().clone();
    for reason in ["presented no certificate", "(ALPN)"] {
        assert!(errors.iter().any(|e| e.to_string().contains(reason)), "{reason}: {errors:?}");
    }
    assert!(scene.app.seen.lock().unwrap().is_empty());
    scene.others_are_fine().await;
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum() {
    let scene = Scene::new().await;
    let config = foreign::client_config(scene.identity(), &[b"fairlead/1"]);
    let tls = foreign::connect(config, scene.server.addr).await.unwrap();
    let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);

    // And our own ClientHello offers it first, with a key share for it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = target(Wire::Native, id("client"), listener.local_addr().unwrap(), &[id("server")]);
    let transport = scene.good.transport.clone();
    tokio::spawn(async move { transport.tunnel(&to, &meta()).await.is_ok() });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut header = [0; 5];
    within("hello", tcp.read_exact(&mut header)).await.unwrap();
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    within("hello", tcp.read_exact(&mut hello)).await.unwrap();
    assert_eq!(extension(&hello, 10)[2..4], [0x11, 0xec], "first of supported_groups");
    assert_eq!(extension(&hello, 51)[2..4], [0x11, 0xec], "first key share");
    assert_eq!(extension(&hello, 43), [2, 3, 4], "supported_versions: TLS 1.3 alone");
}

/// One extension of a ClientHello message.
fn extension(hello: &[u8], wanted: u16) -> &[u8] {
    let u16_at = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + u16_at(at);
    at += 1 + usize::from(hello[at]);
    at += 2;
    loop {
        let body = at + 4..at + 4 + u16_at(at + 2);
        if u16_at(at) == usize::from(wanted) {
            return &hello[body];
        }
        at = body.end;
    }
}

#[tokio::test]
async fn false_claims_of_an_insider_are_refused() {
    let scene = Scene::new().await;
    let session = scene.insider().await;
    let here = scene.server.addr;
    let elsewhere: SocketAddr = "10.9.9.9:80".parse().unwrap();
    let other_port = SocketAddr::new(here.ip(), here.port() ^ 1);
    for (request, reason) in [
        (connect(elsewhere, "127.0.0.1:1"), "not the one that the session is for"),
        (connect(other_port, "127.0.0.1:1"), "not the one that the session is for"),
        (connect(here, "10.1.1.1:1"), "not where the session comes from"),
        (connect(here, "nonsense"), "missing or malformed"),
        (
            Request::get("http://a/").header("fairlead-client", "127.0.0.1:1").body(()).unwrap(),
            "destination is not an address",
        ),
        (
            Request::get("http://a/")
                .header("fairlead-client", "127.0.0.1:1")
                .header("fairlead-dst", here.to_string())
                .body(())
                .unwrap(),
            "fairlead-http is missing",
        ),
        (
            Request::get("http://a/")
                .header("fairlead-client", "127.0.0.1:1")
                .header("fairlead-dst", here.to_string())
                .header("fairlead-http", "1.1")
                .header("host", "b")
                .body(())
                .unwrap(),
            "no Host header",
        ),
    ] {
        let mut session = session.clone().ready().await.unwrap();
        let (response, _send) = session.send_request(request, false).unwrap();
        let status = within("response", response).await.unwrap().status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{reason}");
        let last = scene.app.refusals().pop().unwrap();
        assert!(last.contains(reason), "{last:?} instead of {reason:?}");
    }
    assert!(scene.app.seen.lock().unwrap().is_empty());
    scene.others_are_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rapid_reset_ends_the_session_and_nothing_else() {
    let scene = Scene::new().await;
    let config = foreign::client_config(scene.identity(), &[b"fairlead/1"]);
    let tls = foreign::connect(config, scene.server.addr).await.unwrap();
    let (mut read, mut write) = tokio::io::split(tls);
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    let authority = scene.server.addr.to_string();
    block.extend([0x01, u8::try_from(authority.len()).unwrap()]);
    block.extend(authority.as_bytes());
    block.extend([0x00, 15]);
    block.extend(b"fairlead-client");
    block.extend([11]);
    block.extend(b"127.0.0.1:1");
    // HEADERS and RST_STREAM as fast as the socket takes them.
    let flood = tokio::spawn(async move {
        let mut sent = 0_u32;
        for stream in (1..2_000_000_u32).step_by(2) {
            let id = stream.to_be_bytes();
            let mut frames = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 4];
            frames.extend(id);
            frames.extend(&block);
            frames.extend([0, 0, 4, 3, 0]);
            frames.extend(id);
            frames.extend([0, 0, 0, 8]);
            if write.write_all(&frames).await.is_err() {
                break;
            }
            sent += 1;
            if sent.is_multiple_of(32) {
                let _ = write.flush().await;
            }
        }
        sent
    });
    let mut answer = Vec::new();
    let _ = within("end of the session", read.read_to_end(&mut answer)).await;
    let sent = within("flood", flood).await.unwrap();
    assert!(sent < 100_000, "{sent} streams were reset before the session ended");
    // GOAWAY with ENHANCE_YOUR_CALM (11).
    assert!(
        answer.windows(17).any(|f| f[3] == 7 && f[13..17] == [0, 0, 0, 11]),
        "no GOAWAY(ENHANCE_YOUR_CALM)"
    );
    scene.others_are_fine().await;
}

#[tokio::test]
async fn floods_of_headers_and_continuations_end_the_session() {
    let scene = Scene::new().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let config = foreign::client_config(scene.identity(), &[b"fairlead/1"]);
    let tls = foreign::connect(config, scene.server.addr).await.unwrap();
    let (mut read, mut write) = tokio::io::split(tls);
    write.write_all(preface).await.unwrap();
    let flood = tokio::spawn(async move {
        // HEADERS without END_HEADERS, then CONTINUATION without end.
        let mut frames = vec![0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
        let mut sent = 0_u32;
        while sent < 100_000 && write.write_all(&frames).await.is_ok() {
            let _ = write.flush().await;
            frames = vec![0, 0, 4, 9, 0, 0, 0, 0, 1, 0x00, 1, b'a', 0];
            sent += 1;
        }
        sent
    });
    let mut answer = Vec::new();
    let _ = within("end of the session", read.read_to_end(&mut answer)).await;
    let sent = within("flood", flood).await.unwrap();
    assert!(sent < 50_000, "{sent} CONTINUATION frames were taken");

    // A header list over the limit costs its stream, with 431, and not the session.
    let mut session = scene.insider().await.ready().await.unwrap();
    let mut request = connect(scene.server.addr, "127.0.0.1:1");
    for i in 0..60 {
        let name = http::HeaderName::try_from(format!("x-{i}")).unwrap();
        request.headers_mut().insert(name, "v".repeat(2000).parse().unwrap());
    }
    let (response, _send) = session.send_request(request, false).unwrap();
    match within("answer", response).await {
        Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(error) => assert!(error.is_reset(), "{error}"),
    }
    assert!(scene.app.seen.lock().unwrap().is_empty());
    scene.others_are_fine().await;
}

#[tokio::test]
async fn a_server_that_vanishes_is_noticed_by_the_stream() {
    let scene = Scene::new().await;
    let to = target(Wire::Native, id("client"), scene.server.addr, &[id("server")]);
    let mut tunnel = scene.good.transport.tunnel(&to, &meta()).await.unwrap();
    tunnel.write_all(b"word").await.unwrap();
    tunnel.read_exact(&mut [0; 4]).await.unwrap();
    // A server that speaks and then closes without a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = target(Wire::Native, id("client"), listener.local_addr().unwrap(), &[id("server")]);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            drop(tcp);
        }
    });
    let error = within("error", scene.good.transport.tunnel(&dead, &meta())).await.err().unwrap();
    assert!(matches!(error, TransportError::Handshake { .. }), "{error}");
    assert!(
        error.to_string().contains("closed the connection during the handshake")
            || error.to_string().contains("reset"),
        "{error}"
    );
}

/// Opening a stream and resetting it once its task is at work: the slow form of rapid reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reset_while_they_are_worked_on_are_bounded() {
    let scene = Scene::new().await;
    scene.app.hang.store(true, std::sync::atomic::Ordering::Relaxed);
    let session = scene.insider().await;
    let mut opened = 0;
    let ended = within("end of the session", async {
        loop {
            let Ok(mut ready) = session.clone().ready().await else { return true };
            let request = connect(scene.server.addr, "127.0.0.1:1");
            let Ok((response, mut send)) = ready.send_request(request, false) else { return true };
            opened += 1;
            while scene.app.seen.lock().unwrap().len() < opened {
                if scene.app.refusals().iter().any(|r| r.contains("opened and reset")) {
                    return true;
                }
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
            send.send_reset(h2::Reason::CANCEL);
            drop(response);
        }
    })
    .await;
    assert!(ended);
    assert!((500..600).contains(&opened), "{opened} streams");
    scene.app.hang.store(false, std::sync::atomic::Ordering::Relaxed);
    scene.others_are_fine().await;
}

/// Half-open handshakes of one stranger: bounded for that one, and no matter to others.
#[tokio::test]
async fn a_flood_of_handshakes_is_bounded_by_source() {
    let scene = Scene::new().await;
    let mut held = Vec::new();
    for _ in 0..=limits::HANDSHAKES_PER_SOURCE {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        held.push(socket.connect(scene.server.addr).await.unwrap());
    }
    let error = scene.server.error().await;
    assert!(matches!(error, TransportError::Overload(_)), "{error}");
    assert_eq!(error.refusal(), Refusal::Overload);
    scene.others_are_fine().await;
    // When they are gone, the address is as good as any.
    drop(held);
    within("place", async {
        loop {
            scene.server.errors.lock().unwrap().clear();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut tcp = socket.connect(scene.server.addr).await.unwrap();
            let closed =
                tokio::time::timeout(Duration::from_millis(200), tcp.read(&mut [0; 1])).await;
            if closed.is_err() {
                return;
            }
        }
    })
    .await;
}
