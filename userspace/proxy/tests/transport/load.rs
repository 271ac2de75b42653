//! Many streams, slow streams, and what a node may hold for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_proxy::transport::{RelayCounters, limits, relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use crate::support::{App, LOCALHOST, Pair, echo_app, pass, socket_pair, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_share_few_sessions() {
    for wire in [Wire::Native, Wire::Hbone] {
        let pair = Arc::new(Pair::new(wire, App::relaying_to(echo_app().await)).await);
        let barrier = Arc::new(Barrier::new(1000));
        let mut tasks = Vec::new();
        for i in 0..1000_u32 {
            let (pair, barrier) = (pair.clone(), barrier.clone());
            tasks.push(tokio::spawn(async move {
                let mut tunnel = within("tunnel", pair.tunnel()).await.unwrap();
                barrier.wait().await;
                for round in 0..5_u32 {
                    let word = [i.to_be_bytes(), round.to_be_bytes()].concat();
                    tunnel.write_all(&word).await.unwrap();
                    let mut buf = [0; 8];
                    within("echo", tunnel.read_exact(&mut buf)).await.unwrap();
                    assert_eq!(buf[..], word[..]);
                }
                barrier.wait().await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let least = 1000_usize.div_ceil(limits::STREAMS_PER_SESSION as usize);
        assert_eq!(pair.server.sessions(), least, "{wire:?}");
    }
}

/// Applications that take nothing stall their own streams alone, and a node holds no more for
/// each than its window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_hold_up_no_other_and_hold_bounded_memory() {
    let stalled = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let stalled_addr = stalled.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(stalled.accept().await.unwrap());
        }
    });
    // One server, two kinds of application behind it: the first streams are stalled.
    let pair = Pair::new(Wire::Native, App::relaying_to(stalled_addr)).await;
    let echo = echo_app().await;
    let mut stalled = Vec::new();
    let counters: Vec<_> = (0..50).map(|_| Arc::new(RelayCounters::default())).collect();
    for counter in &counters {
        let tunnel = pair.tunnel().await.unwrap();
        let (mut app, proxy) = socket_pair().await;
        let counter = counter.clone();
        tokio::spawn(async move { relay(proxy, Bytes::new(), tunnel, &counter).await });
        stalled.push(tokio::spawn(async move {
            let chunk = vec![1; 64 * 1024];
            while app.write_all(&chunk).await.is_ok() {}
        }));
    }
    // All come to a halt.
    let total = || counters.iter().map(|c| c.to_tunnel.load(Ordering::Relaxed)).sum::<u64>();
    within("standstill", async {
        let mut last = u64::MAX;
        while total() != last {
            last = total();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
    // What each relay has taken from its application: the window, one chunk at each end, and
    // what the kernel's sockets to the application hold.
    for counter in &counters {
        let taken = counter.to_tunnel.load(Ordering::Relaxed);
        assert!(taken > 0 && taken < 8 << 20, "a stalled stream took {taken} bytes");
    }
    // Others on the same session are as quick as ever.
    pair.server.app.redirect(echo);
    let started = Instant::now();
    let mut tunnel = within("tunnel", pair.tunnel()).await.unwrap();
    for _ in 0..100 {
        tunnel.write_all(b"word").await.unwrap();
        within("echo", tunnel.read_exact(&mut [0; 4])).await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(pair.server.sessions(), 1);
    for task in stalled {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_opened_ahead_are_used() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    pair.client.transport.warm(&pair.target);
    within("session", async {
        while pair.client.transport.sessions().iter().all(|s| s.sessions == 0) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    pair.client.transport.warm(&pair.target);
    let _tunnel = pair.tunnel().await.unwrap();
    assert_eq!(pair.server.sessions(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_pod_that_left_are_closed() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    drop(pair.tunnel().await.unwrap());
    assert_eq!(pair.client.transport.sessions().len(), 1);
    pair.client.transport.retain(&Default::default());
    assert!(pair.client.transport.sessions().is_empty());
    within("drain", async {
        // The server sees an orderly end.
        while pair.server_node.transport.inbound_sessions() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let errors = pair.server.errors.lock().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
}

/// A bulk stream keeps its session to itself; when it ends, the session is open to others again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_stream_gets_a_session_of_its_own() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let tunnel = pair.tunnel().await.unwrap();
    let (mut app, proxy) = socket_pair().await;
    let task =
        tokio::spawn(
            async move { relay(proxy, Bytes::new(), tunnel, &RelayCounters::default()).await },
        );
    let _quiet = pair.tunnel().await.unwrap();
    assert_eq!(pair.server.sessions(), 1);
    let (mut read, mut write) = app.split();
    let chunk = vec![1; 256 * 1024];
    let mut back = vec![0; 256 * 1024];
    within("bulk", async {
        for _ in 0..200 {
            tokio::join!(async { write.write_all(&chunk).await.unwrap() }, async {
                read.read_exact(&mut back).await.unwrap()
            });
        }
    })
    .await;
    let _next = pair.tunnel().await.unwrap();
    let _after = pair.tunnel().await.unwrap();
    assert_eq!(pair.server.sessions(), 2, "new streams share the session of a bulk stream");
    drop(app);
    within("relay", task).await.unwrap();
    let streams = pair.client.transport.sessions()[0].streams;
    let _back = pair.tunnel().await.unwrap();
    assert_eq!(pair.client.transport.sessions()[0].streams, streams + 1);
    assert_eq!(pair.server.sessions(), 2);
}

#[tokio::test]
async fn idle_sessions_are_closed_and_busy_ones_are_not() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let mut busy = pair.tunnel().await.unwrap();
    pass(40, Duration::from_secs(3)).await;
    busy.write_all(b"word").await.unwrap();
    within("echo", busy.read_exact(&mut [0; 4])).await.unwrap();
    assert_eq!(pair.client.transport.sessions()[0].sessions, 1);
    drop(busy);
    tokio::time::sleep(Duration::from_millis(50)).await;
    pass(40, Duration::from_secs(3)).await;
    within("end", async {
        while pair.server_node.transport.inbound_sessions() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(pair.client.transport.sessions().is_empty());
    let errors = pair.server.errors.lock().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
}
