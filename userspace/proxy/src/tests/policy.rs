//! Authorization and revocation across nodes, and identities that are not who they have to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fairlead_config::model::{MtlsMode, PeerWire};
use fairlead_policy::authz::Action;
use fairlead_types::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{World, policy, soon};
use super::http1::{app, raw, response, switching};
use super::l4::{ask, echo};

const CLIENT: &str = "cluster.local/ns/default/sa/client";

#[tokio::test]
async fn denied_elsewhere_and_cut_elsewhere() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let other = world.pod(0, "other", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.mtls(&server, MtlsMode::Strict);
    world.authz(&server, vec![policy(Action::Allow, &[CLIENT], &[])]);
    world.publish().await;
    assert!(soon(ask(&other, vip, "x")).await.is_err());
    let log = world.nodes[0].log(1).await;
    assert!(log[0].to_string().contains("DENY"), "{}", log[0]);
    let mut long = client.connect(vip).await.unwrap();
    long.write_all(b"hi").await.unwrap();
    let mut got = vec![0; client.ip.to_string().len() + 3];
    soon(long.read_exact(&mut got)).await.unwrap();
    world.authz(&server, vec![policy(Action::Deny, &[CLIENT], &[])]);
    world.publish().await;
    let began = Instant::now();
    assert!(soon(long.read(&mut [0])).await.is_err(), "cut, not ended in an orderly way");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn requests_are_judged_one_by_one() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server).await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.authz(&server, vec![policy(Action::Allow, &[CLIENT], &["GET"])]);
    world.publish().await;
    let mut stream = client.connect(vip).await.unwrap();
    for (method, status) in [("GET", "200"), ("DELETE", "403"), ("GET", "200")] {
        let request = format!("{method} /a HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    }
    // A change applies to the next request of the same connection.
    world.authz(&server, vec![policy(Action::Deny, &[CLIENT], &[])]);
    world.publish().await;
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 403"));
    drop(stream);
    let log = world.nodes[0].log(4).await;
    assert_eq!(log[1]["response_code"], 403);
    assert!(log[1]["response_code_details"].as_str().unwrap().contains("rbac_access_denied"));
    let labels = ["response_code=\"403\"", "reporter=\"destination\""];
    assert_eq!(world.nodes[0].metric("istio_requests_total", &labels), 2);
}

#[tokio::test]
async fn plaintext_has_no_identity() {
    let mut world = World::new(1);
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server).await;
    world.describe_port(&server, addr.port(), AppProtocol::Http, None);
    world.authz(&server, vec![policy(Action::Allow, &["*"], &[])]);
    world.publish().await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn an_undeclared_port_with_http_rules_needs_http() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let (addr, _) = app(&world, &server).await;
    let (vip, _) = world.service("web", AppProtocol::Detect, &[(&server, addr)]);
    world.authz(&server, vec![policy(Action::Allow, &[], &["GET"])]);
    world.publish().await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(raw(&client, vip, get).await.starts_with("HTTP/1.1 200"));
    assert!(soon(ask(&client, vip, "bytes\r\n")).await.is_err(), "bytes match no rule for GET");
    let mut plain = TcpStream::connect(addr).await.unwrap();
    tokio::time::sleep(Duration::from_millis(80)).await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(response(&mut plain).await.0.starts_with("HTTP/1.1 200"), "late, but HTTP");
}

/// HTTP that begins late, on a port of which nothing is known: judged as HTTP wherever the
/// destination is.
#[tokio::test]
async fn late_http_is_judged_as_http() {
    for (node, wire) in [(0, PeerWire::Native), (1, PeerWire::Native), (1, PeerWire::Hbone)] {
        let mut world = World::new(2);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let server = world.pod(node, "server", wire).await;
        if wire == PeerWire::Hbone {
            world.listen_at(&server, 15008, |_, _| async {}).await;
        }
        let (addr, _) = app(&world, &server).await;
        let (vip, _) = world.service("web", AppProtocol::Detect, &[(&server, addr)]);
        // To some requests only, and then to every connection.
        for policies in [vec![policy(Action::Allow, &[], &["GET"])], vec![]] {
            let all = policies.is_empty();
            world.authz(&server, policies);
            world.publish().await;
            for (method, status) in [("GET", "200"), ("POST", if all { "200" } else { "403" })] {
                let mut late = client.connect(vip).await.unwrap();
                tokio::time::sleep(Duration::from_millis(150)).await;
                let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
                let what = format!("{wire:?} on node {node}, {method}, all {all}");
                late.write_all(request.as_bytes()).await.expect(&what);
                let (head, _) = response(&mut late).await;
                let what = format!("{what}: {head}");
                assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{what}");
            }
            let mut late = client.connect(vip).await.unwrap();
            tokio::time::sleep(Duration::from_millis(150)).await;
            late.write_all(b"bytes\r\n").await.unwrap();
            if !all {
                let ended = soon(late.read(&mut [0; 64])).await;
                assert!(ended.is_err(), "{wire:?} on node {node}: bytes match no rule for GET");
            }
        }
    }
}

#[tokio::test]
async fn an_enrolled_pod_that_is_not_captured_is_not_reached() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.publish().await;
    assert!(world.nodes[0].plane.remove_pod(&server.workload.id));
    let error = soon(ask(&client, vip, "x")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let log = world.nodes[0].log(1).await;
    assert!(log[0].to_string().contains("not captured yet"), "{}", log[0]);
}

#[tokio::test]
async fn what_switched_protocols_is_listed_and_cut() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, switching).await;
    let (vip, _) = world.service("ws", AppProtocol::Http, &[(&server, addr)]);
    world.publish().await;
    let mut stream = client.connect(vip).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.0.starts_with("HTTP/1.1 101"));
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    soon(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(world.nodes[0].plane.connections().len(), 1);
    world.authz(&server, vec![policy(Action::Deny, &[CLIENT], &[])]);
    world.publish().await;
    let ended = soon(stream.read(&mut got)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert_eq!(world.nodes[0].log(1).await[0]["response_code"], 101);
}

#[tokio::test]
async fn what_switched_protocols_is_judged_again_by_its_request() {
    for (node, wire) in [(0, PeerWire::Native), (1, PeerWire::Native), (1, PeerWire::Hbone)] {
        let mut world = World::new(2);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let server = world.pod(node, "server", wire).await;
        if wire == PeerWire::Hbone {
            world.listen_at(&server, 15008, |_, _| async {}).await;
        }
        let addr = world.listen(&server, switching).await;
        let (vip, _) = world.service("ws", AppProtocol::Http, &[(&server, addr)]);
        let allow = |methods: &[&str]| vec![policy(Action::Allow, &[CLIENT], methods)];
        world.authz(&server, allow(&["GET", "CONNECT"]));
        world.publish().await;
        let mut streams = Vec::new();
        for (request, status) in [
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                "101",
            ),
            ("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", "200"),
        ] {
            let mut stream = client.connect(vip).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let (head, _) = response(&mut stream).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            streams.push(stream);
        }
        let mut got = [0; 4];
        // What still admits a request leaves it alone; the other one is cut.
        for (methods, cut) in [(&["GET", "CONNECT", "POST"][..], None), (&["GET"], Some(1))] {
            world.authz(&server, allow(methods));
            world.publish().await;
            if let Some(cut) = cut {
                let ended = soon(streams[cut].read(&mut got)).await;
                assert!(matches!(ended, Ok(0) | Err(_)), "{wire:?}: {ended:?}");
                streams.remove(cut);
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            for stream in &mut streams {
                stream.write_all(b"ping").await.unwrap();
                soon(stream.read_exact(&mut got)).await.unwrap();
                assert_eq!(&got, b"ping", "{wire:?}");
            }
        }
        assert_eq!(streams.len(), 1);
        world.authz(&server, allow(&["POST"]));
        world.publish().await;
        let ended = soon(streams[0].read(&mut got)).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{wire:?}: {ended:?}");
    }
}

/// Switches of one HTTP/2 connection are judged again one by one.
#[tokio::test]
async fn switches_of_one_connection_are_cut_one_by_one() {
    for nodes in 1..=2 {
        let mut world = World::new(nodes);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let server = world.pod(nodes - 1, "server", PeerWire::Native).await;
        let addr = world.listen(&server, switching).await;
        let (vip, _) = world.service("ws", AppProtocol::Http, &[(&server, addr)]);
        world.publish().await;
        let mut sender = super::http2::connect(&client, vip).await;
        let mut tunnels = Vec::new();
        for host in ["db:5432", "db:5433"] {
            let request = http::Request::connect(host).body(Default::default()).unwrap();
            let response = soon(sender.send_request(request)).await.unwrap();
            assert_eq!(response.status(), 200);
            let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
            tunnels.push(hyper_util::rt::TokioIo::new(upgraded));
        }
        let mut deny = policy(Action::Deny, &[], &["CONNECT"]);
        let host = fairlead_policy::matcher::StringMatch::wildcard("db:5432");
        deny.rules[0].to[0].hosts = fairlead_policy::authz::Values::new(vec![host], vec![]);
        world.authz(&server, vec![deny]);
        world.publish().await;
        let mut got = [0; 4];
        let ended = soon(tunnels[0].read(&mut got)).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{nodes} nodes: {ended:?}");
        tunnels[1].write_all(b"ping").await.unwrap();
        soon(tunnels[1].read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"ping", "{nodes} nodes");
    }
}

/// An application to which CONNECT is a request like any other: it answers every head that comes.
async fn answers_all(mut stream: TcpStream, deletes: Arc<AtomicUsize>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        deletes.fetch_add(usize::from(head.starts_with(b"DELETE")), Ordering::Relaxed);
        head.clear();
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn no_request_comes_past_policy_through_a_tunnel_that_is_none() {
    for nodes in 1..=2 {
        let mut world = World::new(nodes);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let server = world.pod(nodes - 1, "server", PeerWire::Native).await;
        let deletes = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&deletes);
        let addr =
            world.listen(&server, move |stream, _| answers_all(stream, Arc::clone(&seen))).await;
        let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
        world.authz(&server, vec![policy(Action::Deny, &[CLIENT], &["DELETE"])]);
        world.publish().await;
        let mut stream = client.connect(vip).await.unwrap();
        stream.write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let _ = stream.write_all(b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let _ = soon(stream.read(&mut [0; 64])).await;
        assert_eq!(deletes.load(Ordering::Relaxed), 0);
    }
}
