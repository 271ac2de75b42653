//! The round: everything that is readable is drained, everything that the streams have to say is
//! collected, sealed into as few TLS records as possible and written with one system call.
//!
//! HTTP/2 framing believes that it reads and writes plaintext; [`RoundIo`] is what it reads from
//! and writes to. Its flush does nothing: the session's driver calls [`Round::poll_flush`] when
//! the framing has no more to do, and only then is anything sealed. What a round may collect is
//! bounded ([`limits::ROUND`]); beyond that the framing is told to wait for the socket.
//!
//! Both halves belong to one task, so the mutex between them is never contended; it is there
//! because the framing owns its I/O and does not lend it.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits;

/// The driver's half.
pub(super) struct Round(Arc<Mutex<Inner>>);

/// The framing's half.
pub(super) struct RoundIo(Arc<Mutex<Inner>>);

/// A TCP connection with its TLS state.
pub(super) struct Inner {
    tcp: TcpStream,
    tls: rustls::Connection,
    /// Read from the socket, not yet taken by TLS. Borrowed from the thread while there is
    /// something to read: an idle session holds none.
    sealed_in: Option<BytesMut>,
    /// Written by the framing, not yet sealed.
    plain_out: BytesMut,
    received: u64,
    /// The peer has said `close_notify`.
    peer_closed: bool,
    tls_error: Option<rustls::Error>,
    closing: bool,
}

thread_local! {
    /// Read buffers of this thread that no session uses at the moment.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}
/// More than this many spare buffers are given back to the system.
const SPARE_MAX: usize = 4;
/// A session keeps an empty output buffer of at most this size.
const KEEP_OUT: usize = 16 * 1024;

fn take_buffer() -> BytesMut {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(limits::READ))
}

fn give_buffer(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    });
}

impl Inner {
    pub(super) fn new(tcp: TcpStream, mut tls: rustls::Connection) -> Self {
        // The bound is `limits::ROUND`, kept by `poll_write`; TLS must take a whole round.
        tls.set_buffer_limit(None);
        Self {
            tcp,
            tls,
            sealed_in: None,
            plain_out: BytesMut::new(),
            received: 0,
            peer_closed: false,
            tls_error: None,
            closing: false,
        }
    }

    pub(super) fn tls(&self) -> &rustls::Connection {
        &self.tls
    }

    pub(super) fn tls_error(&self) -> Option<&rustls::Error> {
        self.tls_error.as_ref()
    }

    /// Runs the handshake to its end. On an error the alert has been offered to the socket.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_write_sealed(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.poll_feed(cx))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub(super) fn split(self) -> (Round, RoundIo) {
        let shared = Arc::new(Mutex::new(self));
        (Round(shared.clone()), RoundIo(shared))
    }

    /// Gives TLS something new to work on; `false` at the end of the TCP stream.
    fn poll_feed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let buffer = match &mut self.sealed_in {
            Some(buffer) if !buffer.is_empty() => buffer,
            slot => {
                // Asked first, so that an idle session needs no buffer to find out that it is.
                if self.tcp.poll_read_ready(cx)?.is_pending() {
                    if let Some(buffer) = slot.take() {
                        give_buffer(buffer);
                    }
                    return Poll::Pending;
                }
                let buffer = slot.get_or_insert_with(take_buffer);
                buffer.clear();
                buffer.reserve(limits::READ);
                let tcp = Pin::new(&mut self.tcp);
                match tokio_util::io::poll_read_buf(tcp, cx, buffer) {
                    Poll::Pending => {
                        if let Some(buffer) = slot.take() {
                            give_buffer(buffer);
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
                    Poll::Ready(Ok(_)) => buffer,
                }
            }
        };
        let mut rest: &[u8] = buffer;
        let before = rest.len();
        self.tls.read_tls(&mut rest)?;
        let taken = before - rest.len();
        bytes::Buf::advance(buffer, taken);
        if let Err(error) = self.tls.process_new_packets() {
            // The alert that says why; if the socket does not take it now, nobody will miss it.
            let _ = self.poll_write_sealed(cx);
            self.tls_error = Some(error.clone());
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(true))
    }

    /// Writes what is sealed; ready when nothing sealed is left.
    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut Socket(&self.tcp)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                // `try_write` has cleared the readiness; the next turn registers for more.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Seals and writes all of the round.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // What is sealed goes first, and more is sealed only when it is gone: so at most one
            // round of plaintext and one of ciphertext wait for a slow socket.
            ready!(self.poll_write_sealed(cx))?;
            if self.plain_out.is_empty() {
                if self.plain_out.capacity() > KEEP_OUT {
                    self.plain_out = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            io::Write::write_all(&mut self.tls.writer(), &self.plain_out)?;
            self.plain_out.clear();
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok(chunk) => {
                    let n = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..n]);
                    reader.consume(n);
                    self.received += n as u64;
                    self.peer_closed |= n == 0 && buf.remaining() > 0;
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
            if !ready!(self.poll_feed(cx))? {
                // An end without close_notify: the connection was cut.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.plain_out.len() >= limits::ROUND {
            ready!(self.poll_flush(cx))?;
        }
        let mut written = 0;
        for buf in bufs {
            let n = buf.len().min(limits::ROUND - self.plain_out.len());
            self.plain_out.extend_from_slice(&buf[..n]);
            written += n;
            if n < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        if !self.closing {
            self.closing = true;
            self.tls.send_close_notify();
        }
        ready!(self.poll_write_sealed(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl Round {
    /// Ends the round: seals and writes what it collected.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_flush(cx)
    }

    /// Plaintext bytes that the peer has sent so far.
    pub(super) fn received(&self) -> u64 {
        self.0.lock().received
    }

    /// Whether the peer has ended the session in an orderly way, where this side learned of the end
    /// by a write that failed: what the peer said before is still to be read, and is dropped.
    pub(super) fn left_orderly(&self, cx: &mut Context<'_>) -> bool {
        let mut inner = self.0.lock();
        let mut dropped = [0; 4096];
        for _ in 0..=limits::ROUND / dropped.len() {
            if inner.peer_closed {
                return true;
            }
            let mut buf = ReadBuf::new(&mut dropped);
            if !matches!(inner.poll_read(cx, &mut buf), Poll::Ready(Ok(()))) {
                return false;
            }
        }
        inner.peer_closed
    }

    /// The TLS error that ended the connection, if one did.
    pub(super) fn tls_error(&self) -> Option<rustls::Error> {
        self.0.lock().tls_error.clone()
    }
}

/// The socket as TLS wants it: never blocking, many records per system call.
struct Socket<'a>(&'a TcpStream);

impl io::Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for RoundIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.lock().poll_read(cx, buf)
    }
}

impl AsyncWrite for RoundIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver flushes once the framing has nothing more to do; see the module's head.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_shutdown(cx)
    }
}
