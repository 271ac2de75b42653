//! Bytes between two TCP sockets: half-close, resets and back-pressure as on one connection.
//! A buffer is held only while bytes are in it, so an idle connection costs two sockets and a
//! small task; a connection that fills its buffers gets larger ones.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::sock::{self, Breaking};

/// Buffer of a direction that carries little at a time.
const SMALL: usize = 16 * 1024;
/// Buffer of a direction that filled the small one.
const LARGE: usize = 256 * 1024;
/// Buffers of each size that a thread keeps for the next reader.
const KEPT: usize = 16;

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides finished.
    Finished,
    /// The client's connection broke; the upstream was reset too.
    Client(io::Error),
    /// The upstream's connection broke; the client was reset too.
    Upstream(io::Error),
}

/// Bytes that went through, readable while the relay runs.
#[derive(Debug, Default)]
pub(crate) struct Transferred {
    /// From the client to the upstream.
    pub sent: AtomicU64,
    /// From the upstream to the client.
    pub received: AtomicU64,
}

/// Carries bytes both ways until both sides have finished or one broke. What was read from either
/// side before goes first.
pub(crate) async fn relay(
    client: &TcpStream,
    upstream: &TcpStream,
    from_client: Bytes,
    from_upstream: Bytes,
    transferred: &Transferred,
) -> End {
    let mut up = Direction::new(client, upstream, from_client, &transferred.sent);
    let mut down = Direction::new(upstream, client, from_upstream, &transferred.received);
    let end = std::future::poll_fn(|cx| {
        let up_state = up.poll(cx);
        let down_state = down.poll(cx);
        match (up_state, down_state) {
            (Poll::Ready(Err(Broken::From(e))), _) | (_, Poll::Ready(Err(Broken::To(e)))) => {
                Poll::Ready(End::Client(e))
            }
            (Poll::Ready(Err(Broken::To(e))), _) | (_, Poll::Ready(Err(Broken::From(e)))) => {
                Poll::Ready(End::Upstream(e))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    })
    .await;
    match end {
        End::Finished => {}
        // On one connection, the other end would see this as a reset.
        End::Client(_) => sock::reset_on_drop(upstream),
        End::Upstream(_) => sock::reset_on_drop(client),
    }
    end
}

enum Broken {
    From(io::Error),
    To(io::Error),
}

struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    first: Bytes,
    buffer: Option<Buffer>,
    at: usize,
    end: usize,
    large: bool,
    done: bool,
    count: &'a AtomicU64,
    /// Of `from`, while `to` takes nothing.
    breaking: Breaking<'a>,
}

impl<'a> Direction<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, first: Bytes, count: &'a AtomicU64) -> Self {
        Self {
            from,
            to,
            first,
            buffer: None,
            at: 0,
            end: 0,
            large: false,
            done: false,
            count,
            breaking: Breaking::default(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if (!self.first.is_empty() || self.at < self.end)
                && self.poll_drain(cx).map_err(Broken::To)?.is_pending()
            {
                // Nothing is read while nothing can be written, not even a reset.
                let broken = ready!(self.breaking.poll(self.from, cx));
                return Poll::Ready(Err(Broken::From(broken)));
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    self.buffer = None;
                    self.done = true;
                    // The peer may be gone already; then its own direction says so.
                    let _ = sock::shutdown_write(self.to);
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Broken::From(e))),
                Poll::Pending => {
                    self.buffer = None;
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let pending = match &self.buffer {
                _ if !self.first.is_empty() => &self.first[..],
                Some(buffer) if self.at < self.end => &buffer.0[self.at..self.end],
                _ => return Poll::Ready(Ok(())),
            };
            ready!(self.to.poll_write_ready(cx))?;
            match self.to.try_write(pending) {
                Ok(n) => {
                    self.count.fetch_add(n as u64, Ordering::Relaxed);
                    if self.first.is_empty() {
                        self.at += n;
                    } else if n == self.first.len() {
                        self.first = Bytes::new();
                    } else {
                        let _ = self.first.split_to(n);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// `false`: the peer finished.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            ready!(self.from.poll_read_ready(cx))?;
            if self.buffer.as_ref().is_none_or(|b| self.large && b.0.len() < LARGE) {
                self.buffer = Some(Buffer::take(self.large));
            }
            let Some(buffer) = &mut self.buffer else { continue };
            match self.from.try_read(&mut buffer.0) {
                Ok(0) => return Poll::Ready(Ok(false)),
                Ok(n) => {
                    // Grows at once, shrinks at once: an interactive phase gives the memory back.
                    self.large = n >= SMALL;
                    (self.at, self.end) = (0, n);
                    return Poll::Ready(Ok(true));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// A buffer on loan from the thread's store.
struct Buffer(Box<[u8]>);

thread_local! {
    static STORE: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

impl Buffer {
    fn take(large: bool) -> Self {
        let kept = STORE.with_borrow_mut(|store| store[usize::from(large)].pop());
        let size = if large { LARGE } else { SMALL };
        Self(kept.unwrap_or_else(|| vec![0; size].into()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let large = usize::from(buffer.len() == LARGE);
        // `try_with`: a task may be dropped while its thread ends.
        let _ = STORE.try_with(|store| {
            if let Ok(mut store) = store.try_borrow_mut()
                && store[large].len() < KEPT
            {
                store[large].push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    /// Application client, application server, and the relay between them.
    async fn relayed() -> (TcpStream, TcpStream, JoinHandle<End>, Arc<Transferred>) {
        let (client, proxy_down) = pair().await;
        let (proxy_up, server) = pair().await;
        let counts = Arc::new(Transferred::default());
        let shared = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            relay(&proxy_down, &proxy_up, Bytes::from_static(b"pre"), Bytes::new(), &shared).await
        });
        (client, server, task, counts)
    }

    #[tokio::test]
    async fn half_close_lets_the_answer_through() {
        let (mut client, mut server, task, counts) = relayed().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"prequestion");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        assert!(matches!(task.await.unwrap(), End::Finished));
        assert_eq!(counts.sent.load(Ordering::Relaxed), 11);
        assert_eq!(counts.received.load(Ordering::Relaxed), 6);
    }

    #[tokio::test]
    async fn a_reset_travels() {
        let (mut client, mut server, task, _) = relayed().await;
        let mut buf = [0; 3];
        server.read_exact(&mut buf).await.unwrap();
        sock::reset(server);
        let error = client.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(task.await.unwrap(), End::Upstream(_)));
    }

    /// A reset is passed on at once, even while the other side takes nothing.
    #[tokio::test]
    async fn a_reset_travels_past_what_is_stuck() {
        let (mut client, server, task, _) = relayed().await;
        // Until nothing more goes in: the server does not read.
        let chunk = vec![0; 1 << 20];
        let stuck = Duration::from_millis(200);
        while tokio::time::timeout(stuck, client.write_all(&chunk)).await.is_ok() {}
        sock::reset(client);
        let end = tokio::time::timeout(Duration::from_secs(5), task).await;
        assert!(matches!(end.expect("the reset is not passed on").unwrap(), End::Client(_)));
        let error = sock::broken(&server);
        let error = tokio::time::timeout(Duration::from_secs(5), error).await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn bulk_both_ways_with_a_slow_reader() {
        const SIZE: usize = 8 << 20;
        let (client, server, task, _) = relayed().await;
        let body: Arc<Vec<u8>> = Arc::new((0..SIZE).map(|i| ((i * 31) >> 3) as u8).collect());
        let side = |stream: TcpStream, skip: usize, body: Arc<Vec<u8>>| async move {
            let (mut read, mut write) = stream.into_split();
            let out = Arc::clone(&body);
            let writer = tokio::spawn(async move {
                write.write_all(&out).await.unwrap();
                write.shutdown().await.unwrap();
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got[skip..] == body[..], "bytes differ");
        };
        tokio::join!(side(client, 0, body.clone()), side(server, 3, body));
        assert!(matches!(task.await.unwrap(), End::Finished));
    }
}
