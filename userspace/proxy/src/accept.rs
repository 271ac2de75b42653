//! Accept loops: they never end on an error, and back off while the process has no descriptor
//! left.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// First and longest wait after an accept that failed for want of a resource.
const BACKOFF: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(500)];

/// Accepts until `stop` says so (or its sender is gone), handing each connection to `handle`.
pub(crate) async fn run(
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
    mut handle: impl FnMut(TcpStream, SocketAddr),
) {
    let mut backoff = BACKOFF[0];
    let mut stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = BACKOFF[0];
                // Fails only when the peer is gone already; reading will say so.
                let _ = stream.set_nodelay(true);
                handle(stream, peer);
            }
            // That one connection failed before we took it (accept(2)).
            Err(e) if is_connection_error(&e) => {}
            Err(e) => {
                tracing::warn!(error = %e, "accept failed, trying again in {backoff:?}");
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF[1]);
            }
        }
    }
}

fn is_connection_error(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
