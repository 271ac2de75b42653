//! Moves bytes between an application's TCP connection and a tunnel, with the meaning that they
//! have on one plain TCP connection: half-close, reset, and back-pressure with bounded memory.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::Reason;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::error::TransportError;
use super::limits;
use super::stream::Tunnel;
use crate::sock::{self, Breaking};

/// What an idle connection's next read asks for.
const READ_MIN: usize = 4 * 1024;
/// What a busy one's read may grow to.
const READ_MAX: usize = 128 * 1024;
/// Chunks from the tunnel that go to the socket with one system call.
const GATHER: usize = 16;
/// Turns of one direction before other tasks get theirs.
const TURNS: usize = 16;

thread_local! {
    /// What the relays of this thread read into.
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// Bytes carried so far, for the access log and metrics of long connections.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// From the socket into the tunnel.
    pub to_tunnel: AtomicU64,
    /// From the tunnel into the socket.
    pub to_tcp: AtomicU64,
}

/// How a relay ended.
#[derive(Debug)]
pub struct RelayEnd {
    /// From the socket into the tunnel.
    pub to_tunnel: u64,
    /// From the tunnel into the socket.
    pub to_tcp: u64,
    /// Why.
    pub end: End,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides closed.
    Finished,
    /// The application's connection broke; the tunnel was reset.
    Tcp(io::Error),
    /// The tunnel broke; the application's connection was reset.
    Tunnel(TransportError),
}

/// Carries until both directions have ended or one has broken. `first` is what was already read
/// from the socket.
pub async fn relay(
    mut tcp: TcpStream,
    first: Bytes,
    tunnel: Tunnel,
    counters: &RelayCounters,
) -> RelayEnd {
    relay_on(&mut tcp, first, tunnel, counters).await
}

/// The same on a socket that the caller keeps: when it gives up, dropping the future resets the
/// tunnel, and what becomes of the socket is its own to say.
pub(crate) async fn relay_on(
    tcp: &mut TcpStream,
    first: Bytes,
    mut tunnel: Tunnel,
    counters: &RelayCounters,
) -> RelayEnd {
    // What was read off the tunnel to look at it, and was not taken, comes first.
    let rest = std::mem::take(&mut tunnel.rest);
    let queue: VecDeque<_> = Some(rest).into_iter().filter(|rest| !rest.is_empty()).collect();
    let mut relay = Relay {
        tcp: &*tcp,
        tunnel,
        up: Up { chunk: first, size: READ_MIN, state: Direction::Open, blocked: false },
        down: Down { queue, state: Direction::Open, ended: false },
        breaking: Breaking::default(),
        counters,
        moved: 0,
        since: Instant::now(),
    };
    counters.to_tunnel.fetch_add(relay.up.chunk.len() as u64, Ordering::Relaxed);
    let end = match poll_fn(|cx| relay.poll(cx)).await {
        Ok(()) => End::Finished,
        Err(End::Finished) => End::Finished,
        Err(End::Tcp(error)) => {
            relay.tunnel.send.send_reset(Reason::CANCEL);
            End::Tcp(error)
        }
        Err(End::Tunnel(error)) => {
            drop(relay);
            // Closing with a zero linger makes it a reset for the application too.
            let _ = tcp.set_zero_linger();
            End::Tunnel(error)
        }
    };
    RelayEnd {
        to_tunnel: counters.to_tunnel.load(Ordering::Relaxed),
        to_tcp: counters.to_tcp.load(Ordering::Relaxed),
        end,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Open,
    Closed,
}

struct Up {
    /// Read and not yet sent, because the other side has given no credit.
    chunk: Bytes,
    /// Grows with a busy connection and shrinks with a quiet one.
    size: usize,
    state: Direction,
    /// `chunk` waits for credit.
    blocked: bool,
}

struct Down {
    queue: VecDeque<Bytes>,
    state: Direction,
    /// The tunnel's half-close has been read; the queue may not be empty yet.
    ended: bool,
}

struct Relay<'a> {
    tcp: &'a TcpStream,
    tunnel: Tunnel,
    up: Up,
    down: Down,
    /// Of the socket, while nothing is read from it.
    breaking: Breaking<'a>,
    counters: &'a RelayCounters,
    /// Bytes since `since`; see `limits::BULK`.
    moved: u64,
    since: Instant,
}

/// Notes that `n` more bytes have moved; true when that makes the stream bulk.
fn is_bulk(moved: &mut u64, since: &mut Instant, n: usize) -> bool {
    *moved += n as u64;
    if *moved < limits::BULK {
        return false;
    }
    *moved = 0;
    let now = Instant::now();
    now.duration_since(std::mem::replace(since, now)) < limits::BULK_WITHIN
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.up.state == Direction::Open
            && let Poll::Ready(result) = self.poll_up(cx)
        {
            result?;
        }
        if self.down.state == Direction::Open
            && let Poll::Ready(result) = self.poll_down(cx)
        {
            result?;
        }
        if self.up.state == Direction::Closed && self.down.state == Direction::Closed {
            return Poll::Ready(Ok(()));
        }
        // The application may break off after its half-close, or while there is no room for what it
        // has sent; nobody would notice while nothing is read from it.
        if (self.up.state == Direction::Closed || self.up.blocked)
            && let Poll::Ready(error) = self.breaking.poll(self.tcp, cx)
        {
            return Poll::Ready(Err(End::Tcp(error)));
        }
        // And so may the other side of the tunnel.
        if self.down.state == Direction::Closed || !self.down.queue.is_empty() {
            return self.tunnel.poll_reset(cx).map(|error| Err(End::Tunnel(error)));
        }
        Poll::Pending
    }

    /// Socket to tunnel.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let up = &mut self.up;
        for _ in 0..TURNS {
            let sent = self.tunnel.poll_send(cx, &mut up.chunk);
            up.blocked = sent.is_pending();
            ready!(sent).map_err(End::Tunnel)?;
            // Asked before there is a buffer: an idle connection holds none.
            ready!(self.tcp.poll_read_ready(cx)).map_err(End::Tcp)?;
            let mut buffer = SPARE.take();
            buffer.reserve(up.size);
            let result = self.tcp.try_read_buf(&mut buffer);
            if let Ok(n @ 1..) = result {
                // A small message in a large buffer would keep the whole of it for as long as it
                // waits to be sent; copying it costs less.
                up.chunk = if n * 4 < buffer.capacity() {
                    let chunk = Bytes::copy_from_slice(&buffer);
                    buffer.clear();
                    chunk
                } else {
                    buffer.split().freeze()
                };
            }
            SPARE.set(buffer);
            let n = match result {
                Ok(n) => n,
                // `try_read_buf` has cleared the readiness; the next turn registers for more.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(End::Tcp(e))),
            };
            if n == 0 {
                self.tunnel.finish().map_err(End::Tunnel)?;
                up.state = Direction::Closed;
                return Poll::Ready(Ok(()));
            }
            if n >= up.size {
                up.size = (up.size * 2).min(READ_MAX);
            } else if n < up.size / 4 {
                up.size = (up.size / 2).max(READ_MIN);
            }
            self.counters.to_tunnel.fetch_add(n as u64, Ordering::Relaxed);
            if is_bulk(&mut self.moved, &mut self.since, n) {
                self.tunnel.turn_bulk();
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Tunnel to socket.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let down = &mut self.down;
        for _ in 0..TURNS {
            while !down.ended && down.queue.len() < GATHER {
                match self.tunnel.poll_data(cx) {
                    Poll::Ready(Some(chunk)) => down.queue.push_back(chunk.map_err(End::Tunnel)?),
                    Poll::Ready(None) => down.ended = true,
                    Poll::Pending => break,
                }
            }
            if down.queue.is_empty() {
                if !down.ended {
                    return Poll::Pending;
                }
                // FIN to the application.
                sock::shutdown_write(self.tcp).map_err(End::Tcp)?;
                down.queue = VecDeque::new();
                down.state = Direction::Closed;
                return Poll::Ready(Ok(()));
            }
            let mut slices = [IoSlice::new(&[]); GATHER];
            for (slice, chunk) in slices.iter_mut().zip(&down.queue) {
                *slice = IoSlice::new(chunk);
            }
            let slices = &slices[..down.queue.len().min(GATHER)];
            ready!(self.tcp.poll_write_ready(cx)).map_err(End::Tcp)?;
            let n = match self.tcp.try_write_vectored(slices) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(End::Tcp(e))),
            };
            self.counters.to_tcp.fetch_add(n as u64, Ordering::Relaxed);
            self.tunnel.release(n);
            if is_bulk(&mut self.moved, &mut self.since, n) {
                self.tunnel.turn_bulk();
            }
            let mut left = n;
            while left > 0 {
                let Some(front) = down.queue.front_mut() else { break };
                let part = left.min(front.len());
                front.advance(part);
                left -= part;
                if front.is_empty() {
                    down.queue.pop_front();
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
