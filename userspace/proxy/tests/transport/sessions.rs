//! Sessions that end, or take no more streams, while others want one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_proxy::transport::{UpgradeOutcome, Wire, limits};
use http::{Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::hbone::foreign;
use crate::support::{LOCALHOST, Node, TestCa, id, meta, target, within};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// A server of which each session takes one stream at a time, and keeps it; its sessions.
async fn of_one_stream(ca: &TestCa) -> (SocketAddr, Arc<Mutex<Vec<JoinHandle<()>>>>) {
    let tls = TlsAcceptor::from(Arc::new(foreign::server_config(foreign::identity(ca, SERVER))));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let sessions = Arc::new(Mutex::new(Vec::new()));
    let open = Arc::clone(&sessions);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            let tls = tls.clone();
            open.lock().unwrap().push(tokio::spawn(async move {
                let tls = tls.accept(tcp).await.unwrap();
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(1);
                let mut connection = builder.handshake::<_, bytes::Bytes>(tls).await.unwrap();
                let mut streams = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let send = respond.send_response(Response::new(()), false).unwrap();
                    streams.push((request, send));
                }
            }));
        }
    });
    (addr, sessions)
}

#[tokio::test]
async fn a_session_that_ends_makes_room_for_another() {
    let ca = TestCa::new();
    let (addr, sessions) = of_one_stream(&ca).await;
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = target(Wire::Hbone, id("client"), addr, &[id("server")]);
    let mut tunnels = Vec::new();
    for _ in 0..limits::SESSIONS_PER_DESTINATION {
        tunnels.push(within("tunnel", node.transport.tunnel(&to, &meta())).await.unwrap());
    }
    assert_eq!(sessions.lock().unwrap().len(), limits::SESSIONS_PER_DESTINATION);

    let (transport, one_more) = (Arc::clone(&node.transport), to.clone());
    let waiting = tokio::spawn(async move { transport.tunnel(&one_more, &meta()).await });
    // All are full, and it waits.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    sessions.lock().unwrap()[7].abort();
    let tunnel = within("a place", waiting).await.unwrap();
    assert!(tunnel.is_ok(), "{:?}", tunnel.err());
    assert_eq!(sessions.lock().unwrap().len(), limits::SESSIONS_PER_DESTINATION + 1);
}

/// Sessions end, or take no more streams, when a node is about to leave.
#[tokio::test]
async fn an_upgrade_that_nobody_looked_at_is_sent_again() {
    let ca = TestCa::new();
    let mut config = foreign::server_config(foreign::identity(&ca, SERVER));
    config.alpn_protocols = vec![b"fairlead/1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for session in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = tls.accept(tcp).await.unwrap();
            let mut builder = h2::server::Builder::new();
            builder.enable_connect_protocol();
            let mut connection = builder.handshake::<_, bytes::Bytes>(tls).await.unwrap();
            tokio::spawn(async move {
                let mut streams = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if session == 0 {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        continue;
                    }
                    let response = Response::builder().header("fairlead-switched", "101");
                    let send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    streams.push((request, send));
                }
            });
        }
    });
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = target(Wire::Native, id("client"), addr, &[id("server")]);
    let request = Request::get("/chat")
        .header("host", "chat")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(())
        .unwrap();
    let outcome = within("upgrade", node.transport.upgrade(&to, &meta(), request)).await;
    let Ok(UpgradeOutcome::Switched(response, _)) = outcome else {
        panic!("{:?}", outcome.map(|_| "declined"));
    };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
}
