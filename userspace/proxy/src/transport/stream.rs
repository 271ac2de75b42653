//! One stream of a session: as bytes both ways ([`Tunnel`]) or as a message body
//! ([`StreamBody`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::error::TransportError;
use super::meta;
use super::session::Place;

/// One tunnelled connection. Dropping it before both directions have ended resets it.
pub struct Tunnel {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: RecvStream,
    /// What `AsyncRead` has been given and has not read yet.
    pub(super) rest: Bytes,
    place: Option<Place>,
}

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, place: Option<Place>) -> Self {
        Self { send, recv, rest: Bytes::new(), place }
    }

    /// This side's address of the session that carries it, where this side began it.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.place.as_ref().map(Place::local)
    }

    /// Ends both directions at once, as a TCP reset does.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// The stream moves much at once.
    pub(super) fn turn_bulk(&mut self) {
        if let Some(place) = &mut self.place {
            place.turn_bulk();
        }
    }

    /// The next bytes from the other side; `None` at its half-close. The credit for them has to
    /// be given back with [`Tunnel::release`] once they are consumed.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        loop {
            return match ready!(self.recv.poll_data(cx)) {
                // An empty frame carries nothing but would look like an end to a reader.
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => Poll::Ready(Some(Ok(bytes))),
                Some(Err(e)) => Poll::Ready(Some(Err(e.into()))),
                None => Poll::Ready(None),
            };
        }
    }

    /// Gives the other side credit for `n` bytes that were consumed here.
    pub(super) fn release(&mut self, n: usize) {
        // Fails only when the stream is over, when credit means nothing any more.
        let _ = self.recv.flow_control().release_capacity(n);
    }

    /// Sends as much of `chunk` as there is credit for; ready when all of it went.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), TransportError>> {
        poll_send(&mut self.send, cx, chunk, false)
    }

    /// Ends this side's direction (TCP's FIN).
    pub(super) fn finish(&mut self) -> Result<(), TransportError> {
        Ok(self.send.send_data(Bytes::new(), true)?)
    }

    /// Ready when the other side has reset the stream.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<TransportError> {
        self.send.poll_reset(cx).map(|result| match result {
            Ok(reason) => TransportError::Reset { by: "peer", reason },
            Err(e) => e.into(),
        })
    }
}

/// Sends as much of `chunk` as there is credit for; ready when all of it went. With `last` its
/// end is the end of the stream; an empty chunk then ends nothing.
pub(super) fn poll_send(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    chunk: &mut Bytes,
    last: bool,
) -> Poll<Result<(), TransportError>> {
    while !chunk.is_empty() {
        send.reserve_capacity(chunk.len());
        // Credit that is there already does not need to be waited for.
        let credit = match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(credit) => credit?,
                None => return Poll::Ready(Err(closed())),
            },
            credit => credit,
        };
        let n = credit.min(chunk.len());
        let part = chunk.split_to(n);
        send.send_data(part, last && chunk.is_empty())?;
    }
    Poll::Ready(Ok(()))
}

fn closed() -> TransportError {
    TransportError::SessionLost("the stream is no longer open for sending".into())
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.poll_data(cx)) {
                Some(Ok(bytes)) => this.rest = bytes,
                Some(Err(e)) => return Poll::Ready(Err(reset(e))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        this.release(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let send = &mut self.get_mut().send;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(buf.len());
        let credit = match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(credit) => credit.map_err(|e| reset(e.into()))?,
                None => return Poll::Ready(Err(reset(closed()))),
            },
            credit => credit,
        };
        let n = credit.min(buf.len());
        send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(|e| reset(e.into()))?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(reset))
    }
}

fn reset(error: TransportError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// Ends a task that makes sense only as long as this value lives.
pub(super) struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    pub(super) fn new(task: AbortHandle) -> Self {
        Self(Some(task))
    }

    /// Lets the task go on by itself.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A message body that comes over a stream. Dropped before its end, it cancels the stream.
pub struct StreamBody {
    recv: RecvStream,
    data_done: bool,
    /// Fired at the first poll: the reader wants the body of an `Expect: 100-continue` request.
    wanted: Option<oneshot::Sender<()>>,
    /// Sends the request's body, which makes no sense once nobody reads the response.
    upload: Option<AbortOnDrop>,
    _place: Option<Place>,
}

impl StreamBody {
    pub(super) fn new(recv: RecvStream, place: Option<Place>) -> Self {
        Self { recv, data_done: false, wanted: None, upload: None, _place: place }
    }

    pub(super) fn with_wanted(mut self, wanted: oneshot::Sender<()>) -> Self {
        self.wanted = Some(wanted);
        self
    }

    pub(super) fn with_upload(mut self, upload: Option<AbortOnDrop>) -> Self {
        self.upload = upload;
        self
    }

    /// An upload may go on after the response has ended (RFC 9113 section 8.1).
    fn end(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.release();
        }
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        if let Some(wanted) = self.wanted.take() {
            // Nobody listens when the answer has been sent meanwhile: then none is needed.
            let _ = wanted.send(());
        }
        while !self.data_done {
            match ready!(self.recv.poll_data(cx)) {
                // The frame that only says "end".
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    let _ = self.recv.flow_control().release_capacity(bytes.len());
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.end();
        Poll::Ready(match trailers {
            Ok(Some(mut trailers)) => {
                meta::strip(&mut trailers);
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(None) => None,
            Err(e) => Some(Err(e.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
