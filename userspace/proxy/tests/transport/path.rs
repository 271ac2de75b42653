//! The way to a destination is walked again while sessions are open: what a packet filter forbids
//! later holds for new streams.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use fairlead_proxy::transport::{Tunnel, Wire};

use super::support::{App, Pair, echo_app, pass, within};

const SECOND: Duration = Duration::from_secs(1);

async fn echoes(tunnel: &mut Tunnel) {
    tunnel.write_all(b"word").await.unwrap();
    within("echo", tunnel.read_exact(&mut [0; 4])).await.unwrap();
}

#[tokio::test]
async fn a_destination_that_cannot_be_reached_any_more_gets_no_new_stream() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let mut before = pair.tunnel().await.unwrap();
    echoes(&mut before).await;
    // As with a rule that comes later: what is established goes on.
    pair.server.stop_listening().await;
    pass(15, SECOND).await;
    echoes(&mut pair.tunnel().await.unwrap()).await;
    pass(20, SECOND).await;
    // It starts the walk, and does not wait for it.
    echoes(&mut pair.tunnel().await.unwrap()).await;
    let refused = within("the end of new streams", async {
        loop {
            if let Err(error) = pair.tunnel().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let refused = refused.await.to_string();
    assert!(refused.contains("refused"), "{refused}");
    echoes(&mut before).await;
}

#[tokio::test]
async fn the_first_stream_after_a_long_pause_goes_the_whole_way() {
    let pair = Pair::new(Wire::Hbone, App::relaying_to(echo_app().await)).await;
    let mut before = pair.tunnel().await.unwrap();
    pair.server.stop_listening().await;
    pass(100, SECOND).await;
    let refused = pair.tunnel().await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
    echoes(&mut before).await;
}

#[tokio::test]
async fn a_walk_disturbs_nobody() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let mut before = pair.tunnel().await.unwrap();
    for walks in 1..=3 {
        pass(31, SECOND).await;
        echoes(&mut pair.tunnel().await.unwrap()).await;
        within("a walk", async {
            while pair.server.sessions() < 1 + walks {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        within("its end", async {
            while pair.server_node.transport.inbound_sessions() > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        echoes(&mut before).await;
        let sessions = pair.client.transport.sessions();
        assert_eq!((sessions[0].sessions, sessions[0].streams), (1, 1));
    }
    assert_eq!(pair.server.sessions(), 4);
    let errors = pair.server.errors.lock().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
}
