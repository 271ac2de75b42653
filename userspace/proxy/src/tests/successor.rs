//! Connections that are dead before their turn comes, and those that follow them from one source.

use std::time::Duration;

use fairlead_config::model::PeerWire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::harness::{World, soon};
use super::l4::echo;
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
