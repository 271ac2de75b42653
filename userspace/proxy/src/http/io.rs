//! A downstream connection as hyper reads it. It counts bytes, notices a client which begins a
//! request and does not come to the end of its headers (waiting between requests is free; hyper's
//! own timeout would end that too), and keeps heads with two readings from hyper
//! ([`super::head`]).
//!
//! Only HTTP/1 is watched: what an HTTP/2 client sends between requests (settings, credit, pings)
//! begins none, and an unfinished head there costs no more than an idle connection does.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::head::{Found, HeadScan};
use crate::live::Live;

/// Requests of one connection that are being answered, to the end of their responses, and what
/// the connection carries after a switch of protocols.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Flight>);

#[derive(Default)]
struct Flight {
    answering: AtomicUsize,
    /// Of a connection of HTTP/1, where there is one switch at a time: one of the constants below.
    switch: AtomicU8,
    /// Waits for the decision about a switch.
    waker: AtomicWaker,
    /// Why a head was refused.
    refused: OnceLock<&'static str>,
    /// The connection is to end with its next response.
    leaving: AtomicBool,
}

/// No request asks for a switch of protocols.
const NO_SWITCH: u8 = 0;
/// One does, and has not been answered.
const UNDECIDED: u8 = 1;
/// The connection carries something else from here on.
const SWITCHED: u8 = 2;

/// One of them.
pub(super) struct Answering(Arc<Flight>);

impl InFlight {
    pub(super) fn enter(&self) -> Answering {
        self.0.answering.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(&self.0))
    }

    fn is_idle(&self) -> bool {
        self.0.answering.load(Ordering::Relaxed) == 0
    }

    /// A request asks for a switch of protocols.
    pub(super) fn switching(&self) -> Switching {
        self.0.switch.store(UNDECIDED, Ordering::Release);
        Switching { flight: Arc::clone(&self.0), to: NO_SWITCH }
    }

    /// The next response is the last one of the connection.
    pub(super) fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// Why a head was refused, if one was.
    pub(super) fn refused(&self) -> Option<&'static str> {
        self.0.refused.get().copied()
    }
}

impl Answering {
    /// Whether the client has to be told that the connection ends with this response.
    pub(super) fn is_last(&self) -> bool {
        let Flight { leaving, switch, .. } = &*self.0;
        leaving.load(Ordering::Relaxed) && switch.load(Ordering::Acquire) != SWITCHED
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A switch of protocols that is not decided; dropped, it is declined.
pub(super) struct Switching {
    flight: Arc<Flight>,
    to: u8,
}

impl Switching {
    pub(super) fn switched(mut self) {
        self.to = SWITCHED;
    }
}

impl Drop for Switching {
    fn drop(&mut self) {
        self.flight.switch.store(self.to, Ordering::Release);
        self.flight.waker.wake();
    }
}

/// A response's body, whose request is being answered until the body has been taken.
pub(super) struct Held<B> {
    pub(super) body: B,
    pub(super) _answering: Answering,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The connection.
    pub(super) struct Watched<T> {
        #[pin]
        inner: T,
        // What was read of it before.
        first: Bytes,
        in_flight: InFlight,
        limit: Option<Duration>,
        live: Arc<Live>,
        slow: Option<Pin<Box<Sleep>>>,
        head: Option<Box<Head>>,
    }
}

/// A client whose head was refused may still be sending. Closing on it would make a reset of the
/// answer, so what it sends is read for so long (Envoy's `delayed_close_timeout`), and for so much.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);
/// Of that, at a time.
const LINGER_READ: usize = 4 * 1024;

/// What is known of the heads of a connection of HTTP/1.
struct Head {
    scan: HeadScan,
    reading: Reading,
    /// Read behind a head that asks for a switch of protocols, and not shown to hyper yet.
    held: Bytes,
    /// See [`LINGER`].
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Requests.
    Requests,
    /// What follows may be requests or what comes after a switch.
    Undecided,
    /// What comes after a switch.
    Switched,
    /// Nothing more: a head was refused.
    Nothing,
}

impl<T> Watched<T> {
    /// `first` was read of `inner` already. HTTP/1 has a `limit` for its heads; without one bytes are counted and nothing else.
    pub(super) fn new(
        inner: T,
        first: Bytes,
        in_flight: InFlight,
        limit: Option<Duration>,
        live: Arc<Live>,
    ) -> Self {
        let head = limit.map(|_| {
            let (scan, reading) = (HeadScan::new(), Reading::Requests);
            Box::new(Head { scan, reading, held: Bytes::new(), linger: None })
        });
        Self { inner, first, in_flight, limit, live, slow: None, head }
    }
}

impl Head {
    /// Looks at what was read into `buf` behind `before`, before hyper does.
    fn look(&mut self, buf: &mut ReadBuf<'_>, before: usize, in_flight: &InFlight) {
        if self.reading != Reading::Requests {
            return;
        }
        let fresh = &mut buf.filled_mut()[before..];
        match self.scan.scan(fresh) {
            Found::Nothing => {}
            Found::MaySwitch(end) => {
                self.reading = Reading::Undecided;
                self.held = Bytes::copy_from_slice(&fresh[end..]);
                buf.set_filled(before + end);
            }
            Found::Refused(at, why) => {
                // NUL is in no head, and hyper answers it in its turn, once the head has an end.
                fresh[at] = 0;
                buf.set_filled(before + at + 1);
                self.reading = Reading::Nothing;
                self.held = Bytes::from_static(b"\r\n\r\n");
                let _ = in_flight.0.refused.set(why.as_str());
            }
        }
    }

    /// Whether the inner stream may be read; else what there is for the reader.
    fn poll_held(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        in_flight: &InFlight,
    ) -> Poll<bool> {
        if self.reading == Reading::Undecided {
            // Registered before the look, so that no decision is missed.
            in_flight.0.waker.register(cx.waker());
            match in_flight.0.switch.load(Ordering::Acquire) {
                NO_SWITCH => self.reading = Reading::Requests,
                SWITCHED => self.reading = Reading::Switched,
                _ if self.held.is_empty() => return Poll::Ready(true),
                _ => return Poll::Pending,
            }
        }
        if self.held.is_empty() {
            return Poll::Ready(self.reading != Reading::Nothing);
        }
        let before = buf.filled().len();
        let n = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.advance(n);
        let later = std::mem::take(&mut self.held);
        self.look(buf, before, in_flight);
        // What is held back now stands before what was held already.
        if self.held.is_empty() {
            self.held = later;
        } else if self.reading != Reading::Nothing {
            self.held = [&self.held[..], &later[..]].concat().into();
        }
        Poll::Ready(false)
    }
}

impl<T: AsyncRead> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        if let Some(head) = this.head
            && !ready!(head.poll_held(cx, buf, this.in_flight))
        {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = if this.first.is_empty() {
            this.inner.poll_read(cx, buf)
        } else {
            let n = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first.split_to(n));
            Poll::Ready(Ok(()))
        };
        match polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                let n = buf.filled().len() - before;
                this.live.transferred.sent.fetch_add(n as u64, Ordering::Relaxed);
                // Bytes while nothing is being answered are the beginning of a request.
                if !this.in_flight.is_idle() {
                    *this.slow = None;
                } else if this.slow.is_none() {
                    *this.slow = this.limit.map(|limit| Box::pin(sleep(limit)));
                }
                if let Some(head) = this.head {
                    if head.reading == Reading::Undecided {
                        // The end of the client is to be noticed, nothing else.
                        head.held = Bytes::copy_from_slice(&buf.filled()[before..]);
                        buf.set_filled(before);
                        return Poll::Pending;
                    }
                    head.look(buf, before, this.in_flight);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if !this.in_flight.is_idle() {
                    *this.slow = None;
                }
                let Some(slow) = this.slow else { return Poll::Pending };
                ready!(slow.as_mut().poll(cx));
                *this.slow = None;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "request header timeout")))
            }
            other => other,
        }
    }
}

impl<T: AsyncRead + AsyncWrite> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        // An answer goes out: the request's head was complete.
        *this.slow = None;
        let written = ready!(this.inner.poll_write(cx, buf))?;
        this.live.transferred.received.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let Some(head) = this.head.as_mut().filter(|h| h.reading == Reading::Nothing) else {
            return this.inner.poll_shutdown(cx);
        };
        if head.linger.is_none() {
            ready!(this.inner.as_mut().poll_shutdown(cx))?;
        }
        let (until, left) =
            head.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER.0)), LINGER.1));
        while *left > 0 && until.as_mut().poll(cx).is_pending() {
            let mut bytes = [0; LINGER_READ];
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(this.inner.as_mut().poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        *this.slow = None;
        let written = ready!(this.inner.poll_write_vectored(cx, bufs))?;
        this.live.transferred.received.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
