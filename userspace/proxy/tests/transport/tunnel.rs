//! A tunnel means what a TCP connection means.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_proxy::transport::{End, RelayCounters, StreamMeta, TransportError, baggage, relay};
use fairlead_types::{ClientAddr, Refusal, ResponseFlags};
use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{App, LOCALHOST, Pair, echo_app, meta, socket_pair, within};

async fn relayed(
    pair: &Pair,
) -> (TcpStream, tokio::task::JoinHandle<fairlead_proxy::transport::RelayEnd>) {
    let tunnel = within("tunnel", pair.tunnel()).await.unwrap();
    let (app, proxy) = socket_pair().await;
    proxy.set_nodelay(true).unwrap();
    let task =
        tokio::spawn(
            async move { relay(proxy, Bytes::new(), tunnel, &RelayCounters::default()).await },
        );
    (app, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_over_both_wires() {
    for wire in [Wire::Native, Wire::Hbone] {
        let pair = Pair::new(wire, App::relaying_to(echo_app().await)).await;
        let (mut app, task) = relayed(&pair).await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let (mut read, mut write) = app.split();
        let mut received = Vec::new();
        within("echo", async {
            tokio::join!(
                async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                },
                async { read.read_to_end(&mut received).await.unwrap() }
            )
        })
        .await;
        assert!(received == sent, "{wire:?}: bytes differ");
        let end = within("relay", task).await.unwrap();
        assert!(matches!(end.end, End::Finished), "{:?}", end.end);
        assert_eq!((end.to_tunnel, end.to_tcp), (3_000_000, 3_000_000));
    }
}

#[tokio::test]
async fn bytes_read_before_the_tunnel_come_first() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let tunnel = pair.tunnel().await.unwrap();
    let (mut app, proxy) = socket_pair().await;
    tokio::spawn(async move {
        relay(proxy, Bytes::from_static(b"first "), tunnel, &RelayCounters::default()).await
    });
    app.write_all(b"second").await.unwrap();
    let mut buf = [0; 12];
    within("echo", app.read_exact(&mut buf)).await.unwrap();
    assert_eq!(&buf, b"first second");
}

#[tokio::test]
async fn half_close_leaves_the_other_direction_open() {
    // An application that answers only after its client has finished speaking.
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut question = String::new();
        tcp.read_to_string(&mut question).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tcp.write_all(format!("{question}?").as_bytes()).await.unwrap();
    });
    let pair = Pair::new(Wire::Native, App::relaying_to(upstream)).await;
    let (mut app, task) = relayed(&pair).await;
    app.write_all(b"well").await.unwrap();
    app.shutdown().await.unwrap();
    let mut answer = String::new();
    within("answer", app.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "well?");
    assert!(matches!(within("relay", task).await.unwrap().end, End::Finished));
}

#[tokio::test]
async fn a_reset_of_the_server_application_reaches_the_client() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut buf = [0; 4];
        tcp.read_exact(&mut buf).await.unwrap();
        tcp.set_zero_linger().unwrap();
    });
    let pair = Pair::new(Wire::Native, App::relaying_to(upstream)).await;
    let (mut app, task) = relayed(&pair).await;
    app.write_all(b"ping").await.unwrap();
    let error = within("reset", app.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let end = within("relay", task).await.unwrap().end;
    let End::Tunnel(TransportError::Reset { by: "peer", reason }) = end else { panic!("{end:?}") };
    assert_eq!(reason, h2::Reason::CANCEL);
}

#[tokio::test]
async fn a_reset_of_the_client_application_reaches_the_server() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut buf = [0; 4];
        tcp.read_exact(&mut buf).await.unwrap();
        tcp.read(&mut buf).await
    });
    let pair = Pair::new(Wire::Native, App::relaying_to(upstream)).await;
    let (mut app, _task) = relayed(&pair).await;
    app.write_all(b"ping").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    app.set_zero_linger().unwrap();
    drop(app);
    let error = within("reset", server).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_after_the_half_close_is_noticed_by_a_silent_application() {
    // The server half-closes, later breaks; the client application only ever reads.
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tcp.set_zero_linger().unwrap();
    });
    let pair = Pair::new(Wire::Native, App::relaying_to(upstream)).await;
    let (mut app, task) = relayed(&pair).await;
    assert_eq!(within("half-close", app.read(&mut [0; 8])).await.unwrap(), 0);
    let end = within("relay", task).await.unwrap().end;
    assert!(matches!(end, End::Tunnel(TransportError::Reset { .. })), "{end:?}");
}

#[tokio::test]
async fn a_refused_tunnel_says_why() {
    for (refusal, flags, retry) in [
        (Refusal::Deny, ResponseFlags::UnauthorizedExternalService, false),
        (Refusal::Connect, ResponseFlags::UpstreamConnectionFailure, true),
    ] {
        let pair = Pair::new(Wire::Native, App::refusing(refusal).into()).await;
        let error = within("refusal", pair.tunnel()).await.err().unwrap();
        let TransportError::Refused { refusal: said, .. } = &error else { panic!("{error}") };
        assert_eq!(*said, Some(refusal));
        assert_eq!((error.refusal(), error.flags()), (refusal, flags));
        assert_eq!(error.is_safe_to_retry(), retry);
    }
}

#[tokio::test]
async fn what_travels_beside_the_bytes_arrives() {
    for wire in [Wire::Native, Wire::Hbone] {
        let pair = Pair::new(wire, App::relaying_to(echo_app().await)).await;
        let meta = StreamMeta {
            client: ClientAddr("127.0.0.1:4321".parse().unwrap()),
            baggage: baggage("c1", "default", "deployment", "web", "web", "v1"),
            service: Some(HeaderValue::from_static("reviews.default.svc.cluster.local")),
        };
        let _tunnel = pair.client.transport.tunnel(&pair.target, &meta).await.unwrap();
        let seen = pair.server.app.seen.lock().unwrap()[0].clone();
        assert_eq!(seen.client, meta.client, "{wire:?}");
        assert_eq!(seen.dst.0, pair.server.addr);
        assert_eq!(seen.baggage, meta.baggage);
        assert_eq!(seen.service, meta.service);
        assert_eq!(seen.peer.identity, crate::support::id("client"));
        assert_eq!(
            seen.baggage.unwrap(),
            "k8s.cluster.name=c1,k8s.namespace.name=default,k8s.deployment.name=web,\
             service.name=web,service.version=v1"
        );
    }
}

#[tokio::test]
async fn a_dead_destination_is_a_connection_failure_and_may_be_retried() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let nobody = {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let target = crate::support::target(
        Wire::Native,
        crate::support::id("client"),
        nobody,
        &[crate::support::id("server")],
    );
    let error = pair.client.transport.tunnel(&target, &crate::support::meta()).await.err().unwrap();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    assert!(error.is_safe_to_retry());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_lets_streams_finish_and_takes_no_new_ones() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let (mut app, _task) = relayed(&pair).await;
    app.write_all(b"ping").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    let transport = pair.server_node.transport.clone();
    let started = Instant::now();
    let drain = tokio::spawn(async move { transport.drain(Duration::from_secs(30)).await });
    // The other end hears of it in a moment.
    while within("a new stream", pair.tunnel()).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "new streams come about for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The stream that was open goes on; a new one does not come about.
    app.write_all(b"pong").await.unwrap();
    within("echo", app.read_exact(&mut [0; 4])).await.unwrap();
    assert!(within("refusal", pair.tunnel()).await.is_err());
    app.shutdown().await.unwrap();
    drop(app);
    assert_eq!(within("drain", drain).await.unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(25), "drain waited for its deadline");
    assert_eq!(pair.server.app.open.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn ipv6_is_like_ipv4() {
    let localhost = std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
    for wire in [Wire::Native, Wire::Hbone] {
        let app = App::relaying_to(echo_app().await);
        let pair = Pair::new(wire, app.clone()).await;
        let listener = TcpListener::bind((localhost, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let transport = pair.server_node.transport.clone();
        tokio::spawn(async move {
            let inbound = fairlead_proxy::transport::Inbound {
                wire,
                identity: crate::support::id("server"),
                pod_ips: [localhost].into(),
            };
            let (tcp, _) = listener.accept().await.unwrap();
            transport.serve(tcp, &inbound, app).await
        });
        let target = crate::support::target(
            wire,
            crate::support::id("client"),
            addr,
            &[crate::support::id("server")],
        );
        let client = ClientAddr(std::net::SocketAddr::new(localhost, 4321));
        let meta = StreamMeta { client, baggage: None, service: None };
        let mut tunnel =
            within("tunnel", pair.client.transport.tunnel(&target, &meta)).await.unwrap();
        tunnel.write_all(b"word").await.unwrap();
        within("echo", tunnel.read_exact(&mut [0; 4])).await.unwrap();
        let seen = pair.server.app.seen.lock().unwrap()[0].clone();
        assert_eq!((seen.client, seen.dst.0), (client, addr), "{wire:?}");
    }
}

/// A node that lives, and whose application never answers, is waited for only so long.
#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up() {
    for wire in [Wire::Native, Wire::Hbone] {
        let app = App::relaying_to(echo_app().await);
        app.hang.store(true, Ordering::Relaxed);
        let pair = Pair::new(wire, app.clone()).await;
        let limit = Duration::from_millis(300);
        let meta = meta();
        let waiting = pair.client.transport.tunnel_within(&pair.target, &meta, limit);
        let error = within("giving up", waiting).await.err().unwrap();
        assert!(matches!(error, TransportError::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("answer of the destination's node"), "{error}");
        assert_eq!(error.refusal(), Refusal::Connect);
        // Nothing is left behind, and the session is as good as before.
        assert_eq!(pair.client.transport.sessions()[0].streams, 0);
        app.hang.store(false, Ordering::Relaxed);
        within("tunnel", pair.tunnel()).await.unwrap();
        assert_eq!(pair.server.sessions(), 1);
    }
}

/// A reset is passed on at once, even while nobody takes the bytes before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_travels_past_what_is_stuck() {
    for (wire, from_client) in [Wire::Native, Wire::Hbone].map(|w| [(w, true), (w, false)]).concat()
    {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let pair = Pair::new(wire, App::relaying_to(listener.local_addr().unwrap())).await;
        let (client, task) = relayed(&pair).await;
        let (server, _) = within("accept", listener.accept()).await.unwrap();
        let (mut writer, silent) = if from_client { (client, server) } else { (server, client) };
        // Until nothing more goes in.
        let chunk = vec![0; 1 << 20];
        let stuck = Duration::from_millis(200);
        while tokio::time::timeout(stuck, writer.write_all(&chunk)).await.is_ok() {}
        writer.set_zero_linger().unwrap();
        drop(writer);
        let end = within("the end of the relay", task).await.unwrap().end;
        match end {
            End::Tcp(_) => assert!(from_client, "{wire:?}"),
            End::Tunnel(_) => assert!(!from_client, "{wire:?}"),
            End::Finished => panic!("{wire:?}: an orderly end"),
        }
        within("the reset", silent.ready(tokio::io::Interest::ERROR)).await.unwrap();
        let error = silent.take_error().unwrap().expect("no error");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{wire:?}");
    }
}
