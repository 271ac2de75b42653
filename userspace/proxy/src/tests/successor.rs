//! What follows something else: a connection on another from one source, the end of a daemon on
//! what waits, a pod on one of its name.

use std::time::Duration;

use fairlead_config::model::PeerWire;
use fairlead_types::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::harness::{World, soon};
use super::http1::response;
use super::l4::echo;
use crate::dataplane::REPLACED;
use crate::outbound::SUCCESSOR;
use crate::sock;

/// An address outside of the mesh that tells what came over each connection.
async fn listening(
    world: &mut World,
    name: &str,
) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>) {
    let pod = world.pod(0, name, PeerWire::Plain).await;
    let (told, hears) = mpsc::unbounded_channel();
    let addr = world
        .listen(&pod, move |mut stream, _| {
            let told = told.clone();
            async move {
                let mut got = String::new();
                let _ = stream.read_to_string(&mut got).await;
                told.send(got).unwrap();
            }
        })
        .await;
    (addr, hears)
}

/// What waits in the queue when a drain begins has its time, as what was accepted before.
#[tokio::test]
async fn a_drain_waits_for_what_the_kernel_has_accepted() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Plain).await;
    let addr = world.listen(&server, echo).await;
    world.publish().await;
    let mut queued = client.connect_unnoticed(addr).unwrap();
    std::io::Write::write_all(&mut queued, b"hello").unwrap();
    queued.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.nodes[0].plane.drain(Duration::from_secs(10)).await, 0);
    queued.set_nonblocking(true).unwrap();
    let mut got = String::new();
    std::io::Read::read_to_string(&mut queued, &mut got).unwrap();
    assert!(got.ends_with(" hello"), "{got}");
}

#[tokio::test]
async fn what_was_sent_before_a_reset_does_not_go_where_the_next_connection_goes() {
    let mut world = World::new(1);
    // So that connections wait in the kernel, as they do where there are too many.
    world.nodes[0].plane.hold();
    let client = world.pod(0, "client", PeerWire::Native).await;
    let (x, mut at_x) = listening(&mut world, "x").await;
    let (y, mut at_y) = listening(&mut world, "y").await;
    world.publish().await;

    let mut alone = client.connect_from(4001, x).await.unwrap();
    alone.write_all(b"for x").await.unwrap();
    sock::reset(alone);
    let mut first = client.connect_from(4000, x).await.unwrap();
    first.write_all(b"for x").await.unwrap();
    sock::reset(first);
    let mut second = client.connect_from(4000, y).await.unwrap();
    second.write_all(b"for y").await.unwrap();
    second.shutdown().await.unwrap();

    world.nodes[0].plane.serve();
    assert_eq!(soon(at_y.recv()).await.unwrap(), "for y");
    assert_eq!(world.nodes[0].metric("fairlead_flow_miss_total", &[]), 0);
    let log = world.nodes[0].log(1).await;
    assert_eq!(log[0]["upstream_host"], y.to_string());
    assert!(at_x.try_recv().is_err() && at_y.try_recv().is_err());

    // What nobody follows is not left behind for ever.
    assert_eq!(client.untaken(), 1);
    tokio::time::pause();
    tokio::time::advance(SUCCESSOR + Duration::from_secs(1)).await;
    while client.untaken() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pod_that_is_replaced_ends_in_an_orderly_way() {
    let mut world = World::new(1);
    let mut client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Plain).await;
    let (told, mut closed) = mpsc::unbounded_channel();
    let answers = move |mut stream: TcpStream, _| {
        let told = told.clone();
        async move {
            let mut buf = [0; 4096];
            while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
            let _ = told.send(());
        }
    };
    let addr = world.listen(&server, answers).await;
    let (vip, _) = world.service("web", AppProtocol::Http, &[(&server, addr)]);
    world.publish().await;
    let mut held = client.connect(vip).await.unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    assert_eq!(soon(response(&mut held)).await.1, "ok");

    let before = world.replace(&mut client);
    // Its connection that waits for a next request is closed, although its client is there.
    soon(closed.recv()).await.unwrap();
    // Who is half-way to the listeners of before is not reset.
    let late = TcpStream::connect(before).await.expect("a listener that goes on");
    drop(late);
    tokio::time::pause();
    tokio::time::advance(REPLACED + Duration::from_secs(1)).await;
    while TcpStream::connect(before).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(client.connect(vip).await.is_ok());
}
