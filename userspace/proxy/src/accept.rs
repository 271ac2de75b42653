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

/// Connections that are taken of a queue when its listener ends: no backlog is longer.
const MAX_QUEUED: usize = 65_536;

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
            _ = &mut stopped => break,
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
    if let Ok(listener) = listener.into_std() {
        accept_queued(&listener, handle);
    }
}

/// Hands over what the kernel has accepted already: clients hold these connections for open, and
/// they would be reset with the listener.
fn accept_queued(listener: &std::net::TcpListener, mut handle: impl FnMut(TcpStream, SocketAddr)) {
    for _ in 0..MAX_QUEUED {
        match listener.accept() {
            Ok((stream, peer)) => {
                let ready = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = ready {
                    let _ = stream.set_nodelay(true);
                    handle(stream, peer);
                }
            }
            Err(e) if is_connection_error(&e) => {}
            // Empty, or without descriptors.
            Err(_) => return,
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
