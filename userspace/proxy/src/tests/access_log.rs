//! What the lines of the access log hold, as they are written.

use fairlead_config::model::PeerWire;
use fairlead_types::AppProtocol;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{World, soon};
use super::l4::{ask, echo};
use super::{http1, http2};

const GET: &[u8] = b"GET /l HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// The upstream's fields are there, and the local address is one of the machine.
fn assert_upstream(line: &Value, host: std::net::SocketAddr, cluster: &str) {
    assert_eq!(line["upstream_host"], host.to_string(), "{line}");
    assert_eq!(line["upstream_cluster"], cluster, "{line}");
    let local = line["upstream_local_address"].as_str().unwrap_or_default();
    let local: std::net::SocketAddr = local.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
    assert!(local.ip().is_loopback() && local.port() != 0 && local != host, "{line}");
}

fn id_in(answer: &str) -> String {
    let seen = http1::seen(answer.split_once("\r\n\r\n").unwrap().1);
    let id = seen["headers"]["x-request-id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 36, "{id}");
    id
}

#[tokio::test]
async fn requests_on_one_node() {
    let (world, client, server, vip, _) = http1::one_service(AppProtocol::Http).await;
    let id = id_in(&http1::raw(&client, vip, GET).await);
    // On a connection out of the pool, and with an id of the client's own.
    let own = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: own\r\nConnection: close\r\n\r\n";
    http1::raw(&client, vip, own).await;
    let log = world.nodes[0].log(2).await;
    assert_eq!(log[0]["request_id"], id.as_str());
    assert_eq!(log[1]["request_id"], "own");
    for line in &log {
        let host = line["upstream_host"].as_str().unwrap().parse().unwrap();
        assert_upstream(line, host, "outbound|80||web.default.svc.cluster.local");
        assert_eq!(host.ip(), server.ip);
    }
    assert_eq!(log[0]["upstream_local_address"], log[1]["upstream_local_address"]);
}

#[tokio::test]
async fn requests_and_connections_between_nodes() {
    for wire in [PeerWire::Native, PeerWire::Hbone] {
        let mut world = World::new(2);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let server = world.pod(1, "server", wire).await;
        if wire == PeerWire::Hbone {
            world.listen_at(&server, 15008, |_, _| async {}).await;
        }
        let (web, _) = http1::app(&world, &server).await;
        let ws = world.listen(&server, http1::switching).await;
        let db = world.listen(&server, echo).await;
        let (grpc, _) = http2::app(&world, &server, "s").await;
        let mut vips = Vec::new();
        for (name, protocol, addr) in [
            ("web", AppProtocol::Http, web),
            ("ws", AppProtocol::Http, ws),
            ("db", AppProtocol::Tcp, db),
            ("grpc", AppProtocol::Grpc, grpc),
        ] {
            vips.push((name, addr, world.service(name, protocol, &[(&server, addr)]).0));
        }
        world.publish().await;
        let id = id_in(&http1::raw(&client, vips[0].2, GET).await);
        for node in &world.nodes {
            assert_eq!(node.log(1).await[0]["request_id"], id.as_str(), "{wire:?}");
        }
        http1::switch(&client, vips[1].2).await;
        for node in &world.nodes {
            node.log(3).await;
        }
        soon(ask(&client, vips[2].2, "x")).await.unwrap();
        for node in &world.nodes {
            node.log(4).await;
        }
        http2::ping_pong(&client, vips[3].2).await;
        for (n, node) in world.nodes.iter().enumerate() {
            let log = node.log(5).await;
            for (line, (name, addr, _)) in log.iter().zip([0, 1, 1, 2, 3].map(|v| &vips[v])) {
                let cluster = match n {
                    0 => format!("outbound|80||{name}.default.svc.cluster.local"),
                    _ => format!("inbound|{}||", addr.port()),
                };
                assert_upstream(line, *addr, &cluster);
                assert_eq!(line["request_id"].is_null(), *name == "db", "{line}");
            }
        }
    }
}

#[tokio::test]
async fn plaintext_from_outside_the_mesh() {
    let mut world = World::new(1);
    let server = world.pod(0, "server", PeerWire::Native).await;
    let db = world.listen(&server, echo).await;
    let (web, _) = http1::app(&world, &server).await;
    world.describe_port(&server, db.port(), AppProtocol::Tcp, None);
    world.publish().await;
    for (to, bytes) in [(db, &b"x"[..]), (web, GET)] {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        if to == db {
            stream.shutdown().await.unwrap();
        }
        soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    let log = world.nodes[0].log(2).await;
    for (line, to) in log.iter().zip([db, web]) {
        assert_upstream(line, to, &format!("inbound|{}||", to.port()));
    }
    assert!(log[0]["request_id"].is_null());
    assert_eq!(log[1]["request_id"].as_str().map(str::len), Some(36), "{}", log[1]);
}
