//! A downstream connection that notices a client which begins a request and does not come to the
//! end of its headers. Waiting between requests is free; hyper's own timeout would end that too.
//!
//! Only HTTP/1 is watched: what an HTTP/2 client sends between requests (settings, credit, pings)
//! begins none, and an unfinished head there costs no more than an idle connection does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::live::Live;

/// Requests of one connection that are being answered, to the end of their responses, and what
/// the connection carries after a switch of protocols.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<AtomicUsize>);

/// One of them.
pub(super) struct Answering(Arc<AtomicUsize>);

impl InFlight {
    pub(super) fn enter(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(&self.0))
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    pub(super) struct SlowHead<T> {
        #[pin]
        inner: T,
        in_flight: InFlight,
        limit: Option<Duration>,
        live: Arc<Live>,
        head: Option<Pin<Box<Sleep>>>,
    }
}

impl<T> SlowHead<T> {
    /// Without a `limit` it only counts bytes.
    pub(super) fn new(
        inner: T,
        in_flight: InFlight,
        limit: Option<Duration>,
        live: Arc<Live>,
    ) -> Self {
        Self { inner, in_flight, limit, live, head: None }
    }
}

impl<T: AsyncRead> AsyncRead for SlowHead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        match this.inner.poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                let n = buf.filled().len() - before;
                this.live.transferred.sent.fetch_add(n as u64, Ordering::Relaxed);
                // Bytes while nothing is being answered are the beginning of a request.
                if !this.in_flight.is_idle() {
                    *this.head = None;
                } else if this.head.is_none() {
                    *this.head = this.limit.map(|limit| Box::pin(sleep(limit)));
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if !this.in_flight.is_idle() {
                    *this.head = None;
                }
                let Some(head) = this.head else { return Poll::Pending };
                ready!(head.as_mut().poll(cx));
                *this.head = None;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "request header timeout")))
            }
            other => other,
        }
    }
}

impl<T: AsyncWrite> AsyncWrite for SlowHead<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        // An answer goes out: the request's head was complete.
        *this.head = None;
        let written = ready!(this.inner.poll_write(cx, buf))?;
        this.live.transferred.received.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        *this.head = None;
        let written = ready!(this.inner.poll_write_vectored(cx, bufs))?;
        this.live.transferred.received.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
