//! Requests that the other node has not looked at: its session was about to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fairlead_config::model::PeerWire;
use fairlead_identity::Wire;
use fairlead_types::AppProtocol;
use http::Response;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::harness::{TestPod, World};
use super::http1::raw;

/// A node of which every other request is refused unseen (RFC 9113 section 8.7); the others are
/// answered with their body.
async fn refusing_every_other(world: &World, pod: &TestPod, listener: TcpListener) {
    let certificate = world.nodes[1].certificate(&pod.workload.name);
    let tls = TlsAcceptor::from(certificate.server_config(Wire::Native));
    let seen = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (tls, seen) = (tls.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let tls = tls.accept(tcp).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        continue;
                    }
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut got = Vec::new();
                        while let Some(Ok(data)) = body.data().await {
                            got.extend_from_slice(&data);
                        }
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        send.send_data(Bytes::from(got), true).unwrap();
                    });
                }
            });
        }
    });
}

/// Whatever the policy says: nothing has happened that could happen twice.
#[tokio::test]
async fn a_request_that_nobody_looked_at_is_sent_again_without_a_policy_of_retries() {
    let mut world = World::new(2);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(1, "server", PeerWire::Native).await;
    let listener = TcpListener::bind(SocketAddr::new(server.ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.mesh(|mesh| mesh.default_retry.attempts = 0);
    world.publish().await;
    refusing_every_other(&world, &server, listener).await;

    for (head, body) in [
        ("GET /a HTTP/1.1\r\nHost: web\r\n", ""),
        ("POST /b HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n", "hello"),
        (
            "POST /c HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        let request = format!("{head}Connection: close\r\n\r\n{body}");
        let got = raw(&client, vip, request.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 200"), "{head}: {got}");
        assert_eq!(got.contains("hello"), !body.is_empty(), "{head}: {got}");
    }
    let log = world.nodes[0].log(3).await;
    assert_eq!(log[1]["bytes_received"], 5, "counted once");
}
