//! Two nodes: the native transport, HBONE, and plaintext from outside.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fairlead_config::model::{MtlsMode, PeerWire};
use fairlead_policy::authz::Action;
use fairlead_types::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{World, policy, soon};
use super::l4::{ask, echo};
use super::{http1, http2};

#[tokio::test]
async fn bytes_over_the_native_transport() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.publish().await;
    for _ in 0..3 {
        let got = soon(ask(&client, vip, "hello")).await.unwrap();
        assert_eq!(got, format!("{} hello", client.ip), "the application sees the client");
    }
    let (source, destination) = (&world.nodes[0], &world.nodes[1]);
    assert_eq!(source.log(3).await[0]["upstream_host"], addr.to_string());
    destination.log(3).await;
    for (node, reporter) in [(source, "source"), (destination, "destination")] {
        let reporter = format!("reporter=\"{reporter}\"");
        let labels = [
            reporter.as_str(),
            "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"",
            "destination_principal=\"spiffe://cluster.local/ns/default/sa/server\"",
        ];
        node.until_metric("istio_tcp_connections_closed_total", &labels, 3).await;
        assert_eq!(node.metric("istio_tcp_received_bytes_total", &labels), 15);
    }
    assert_eq!(
        source.metric("istio_tcp_connections_opened_total", &["reporter=\"destination\""]),
        0
    );
}

#[tokio::test]
async fn a_dead_application_elsewhere_is_passed_over() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let dead = std::net::SocketAddr::new(server.ip, 1);
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, dead), (&server, addr)]);
    world.publish().await;
    for _ in 0..6 {
        assert_eq!(soon(ask(&client, vip, "x")).await.unwrap(), format!("{} x", client.ip));
    }
}

#[tokio::test]
async fn requests_over_the_native_transport() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let (addr, connections) = http1::app(&world, &server).await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.publish().await;
    let mut stream = client.connect(vip).await.unwrap();
    for n in 0..5 {
        let request = format!(
            "POST /x/../r{n} HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: URI=forged\r\n\
             Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, body) = http1::response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let seen = http1::seen(&body);
        assert_eq!((&seen["uri"], &seen["body"]), (&format!("/r{n}").into(), &"hello".into()));
        assert_eq!(
            seen["headers"]["x-forwarded-client-cert"],
            world.nodes[0].xfcc("server", "client"),
            "the certificate of the client, not of the node that delivers"
        );
        assert_eq!(
            seen["client"].as_str().unwrap().split(':').next(),
            Some(&*client.ip.to_string())
        );
    }
    drop(stream);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    for (node, reporter) in [(&world.nodes[0], "source"), (&world.nodes[1], "destination")] {
        let reporter = format!("reporter=\"{reporter}\"");
        let labels =
            [reporter.as_str(), "response_code=\"200\"", "destination_service_name=\"web\""];
        node.until_metric("istio_requests_total", &labels, 5).await;
    }
    assert_eq!(world.nodes[0].log(5).await[4]["bytes_received"], 5);
    assert_eq!(world.nodes[1].log(5).await[4]["bytes_received"], 5);

    // Denied there, by method.
    world.authz(&server, vec![policy(Action::Allow, &[], &["GET"])]);
    world.publish().await;
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let got = http1::raw(&client, vip, post).await;
    assert!(got.starts_with("HTTP/1.1 403") && got.ends_with("RBAC: access denied"), "{got}");
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(http1::raw(&client, vip, get).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn grpc_and_upgrades_over_the_native_transport() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let (addr, _) = http2::app(&world, &server, "s").await;
    let switching = world.listen(&server, http1::switching).await;
    let (grpc, _) = world.service("echo", AppProtocol::Grpc, &[(&server, addr)]);
    let (ws, _) = world.service("ws", AppProtocol::Http, &[(&server, switching)]);
    world.publish().await;
    http2::ping_pong(&client, grpc).await;
    http1::switch(&client, ws).await;
    assert_eq!(world.nodes[1].log(3).await[1]["response_code"], 101);
}

#[tokio::test]
async fn hbone_carries_bytes_and_http() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Hbone).await;
    // Where sessions of HBONE arrive; nothing of the application is there.
    world.listen_at(&server, 15008, |_, _| async {}).await;
    let bytes = world.listen(&server, echo).await;
    let (web, _) = http1::app(&world, &server).await;
    let (switching, (grpc, _)) =
        (world.listen(&server, http1::switching).await, http2::app(&world, &server, "s").await);
    let (db, _) = world.service("db", AppProtocol::Tcp, &[(&server, bytes)]);
    let (web, _) = world.service("web", AppProtocol::Http, &[(&server, web)]);
    let (ws, _) = world.service("ws", AppProtocol::Http, &[(&server, switching)]);
    let (echo, _) = world.service("echo", AppProtocol::Grpc, &[(&server, grpc)]);
    world.publish().await;
    assert_eq!(soon(ask(&client, db, "x")).await.unwrap(), format!("{} x", client.ip));
    let get = b"GET /h HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let got = http1::raw(&client, web, get).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    let seen = http1::seen(got.split_once("\r\n\r\n").unwrap().1);
    assert_eq!(seen["headers"]["x-forwarded-client-cert"], world.nodes[0].xfcc("server", "client"));
    http1::switch(&client, ws).await;
    http2::ping_pong(&client, echo).await;
}

#[tokio::test]
async fn ports_that_a_pod_keeps_out_of_the_mesh() {
    const OUT: u16 = 7070;
    const OUT_HTTP: u16 = 7071;
    for at in [0, 1] {
        let mut world = World::new(2);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let excluded = [OUT, OUT_HTTP];
        let server = world.pod_excluding(at, "server", PeerWire::Native, &[], &excluded).await;
        let bytes = world.listen_at(&server, OUT, echo).await;
        let web = world.listen_at(&server, OUT_HTTP, http1::switching).await;
        let kept = world.listen(&server, echo).await;
        let (db, _) = world.service("db", AppProtocol::Tcp, &[(&server, bytes)]);
        let (ws, _) = world.service("ws", AppProtocol::Http, &[(&server, web)]);
        let (in_mesh, _) = world.service("kept", AppProtocol::Tcp, &[(&server, kept)]);
        // Policy is for what the mesh carries.
        world.authz(&server, vec![policy(Action::Allow, &["nobody"], &[])]);
        world.publish().await;
        // By the service and by the pod's address.
        for to in [db, bytes] {
            let got = soon(ask(&client, to, "x")).await.unwrap();
            assert_eq!(got, format!("{} x", client.ip));
        }
        http1::switch(&client, ws).await;
        assert!(world.nodes[1].plane.connections().is_empty(), "no session");
        let refused = soon(ask(&client, in_mesh, "x")).await;
        assert!(!matches!(&refused, Ok(got) if !got.is_empty()), "{refused:?}");
        let log = world.nodes[0].log(5).await;
        assert_eq!(log[0]["upstream_host"], bytes.to_string());
        let plain = ["destination_principal=\"unknown\"", "destination_workload=\"server\""];
        let opened = "istio_tcp_connections_opened_total";
        assert_eq!(world.nodes[0].metric(opened, &plain), 2, "nobody has proven an identity");
    }
}

#[tokio::test]
async fn plaintext_from_outside() {
    let mut world = World::new(1);
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (web, _) = http1::app(&world, &server).await;
    world.describe_port(&server, addr.port(), AppProtocol::Tcp, None);
    world.publish().await;
    let get = b"GET /p HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: URI=forged\r\nConnection: close\r\n\r\n";
    let plain = |to: std::net::SocketAddr, bytes: &'static [u8]| async move {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut got = String::new();
        soon(stream.read_to_string(&mut got)).await.map(|_| got)
    };
    assert_eq!(plain(addr, b"hello").await.unwrap(), "127.0.0.1 hello");
    let mut stream = TcpStream::connect(web).await.unwrap();
    stream.write_all(get).await.unwrap();
    let (_, body) = http1::response(&mut stream).await;
    assert!(http1::seen(&body)["headers"]["x-forwarded-client-cert"].is_null());
    let labels = ["connection_security_policy=\"none\"", "reporter=\"destination\""];
    world.nodes[0].until_metric("istio_requests_total", &labels, 1).await;

    let mut kept = TcpStream::connect(web).await.unwrap();
    let get = b"GET /p HTTP/1.1\r\nHost: a\r\n\r\n";
    kept.write_all(get).await.unwrap();
    assert!(http1::response(&mut kept).await.0.starts_with("HTTP/1.1 200"));

    world.mtls(&server, MtlsMode::Strict);
    world.publish().await;
    let error = plain(addr, b"hello").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let log = world.nodes[0].log(4).await;
    assert!(log[3].to_string().contains("STRICT"), "{}", log[3]);
    // A connection from before carries no further request.
    kept.write_all(get).await.unwrap();
    let (head, _) = http1::response(&mut kept).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert_eq!(soon(kept.read(&mut [0])).await.unwrap(), 0);
    let log = world.nodes[0].log(5).await;
    assert!(log[4].to_string().contains("STRICT"), "{}", log[4]);
    let labels = ["response_flags=\"NETWORK_POLICY\""];
    assert_eq!(world.nodes[0].metric("istio_tcp_connections_failed_total", &labels), 1);
}

/// What is left of a connection when the node daemon of its client dies before its ClientHello.
#[tokio::test]
async fn an_enrolled_client_that_ends_before_its_hello_gets_no_word() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    world.publish().await;
    let end_from = |ip: std::net::IpAddr| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(std::net::SocketAddr::new(ip, 0)).unwrap();
        let mut stream = socket.connect(addr).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        soon(stream.read_to_string(&mut got)).await.map(|_| got)
    };
    // A client outside the mesh may end first and still be answered.
    assert_eq!(end_from("127.0.0.1".parse().unwrap()).await.unwrap(), "127.0.0.1 ");
    let error = end_from(client.ip).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let log = world.nodes[0].log(2).await;
    assert!(log[1].to_string().contains("ClientHello"), "{}", log[1]);
}

#[tokio::test]
async fn banners_for_plaintext_clients_and_slow_mesh_clients() {
    let mut world = World::new(1);
    let server = world.pod(0, "server", PeerWire::Native).await;
    let banner = |mut stream: TcpStream, _| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let _ = stream.read(&mut [0; 16]).await;
    };
    let addr = world.listen(&server, banner).await;
    world.publish().await;
    let (mut line, mut waits) = ([0; 11], Vec::new());
    for _ in 0..3 {
        let began = Instant::now();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        soon(stream.read_exact(&mut line)).await.unwrap();
        waits.push(began.elapsed());
    }
    assert!(waits.iter().any(|wait| *wait < Duration::from_millis(100)), "{waits:?}");

    // Half a ClientHello, and garbage: nobody else notices.
    let mut half = TcpStream::connect(addr).await.unwrap();
    half.write_all(&[0x16, 3, 1, 2]).await.unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    soon(stream.read_exact(&mut line)).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(half.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}
