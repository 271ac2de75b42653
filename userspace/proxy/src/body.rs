//! The body type of every HTTP message in the proxy: an enum, so that the common cases cost no
//! allocation and no dynamic call.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::transport::{StreamBody, TransportError};

/// A message body.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it, once.
    Full(Option<Bytes>),
    /// From an HTTP connection of an application.
    Incoming(Incoming),
    /// From a stream of the transport.
    Stream(StreamBody),
    /// Something rarer: a body that is limited, delayed, mirrored.
    Boxed(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError> + Send>>),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The application's connection. Blame: the application.
    #[error("application: {0}")]
    Application(#[from] hyper::Error),
    /// The stream between the nodes.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A filter of the proxy ended it.
    #[error("{0}")]
    Filter(&'static str),
}

impl Body {
    /// A body of `bytes`.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }

    /// A body of another type.
    pub fn boxed(
        body: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static,
    ) -> Self {
        Self::Boxed(Box::pin(body))
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::Incoming(incoming)
    }
}

impl From<StreamBody> for Body {
    fn from(stream: StreamBody) -> Self {
        Self::Stream(stream)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Incoming(body) => {
                Pin::new(body).poll_frame(cx).map(|f| f.map(|r| r.map_err(BodyError::Application)))
            }
            Self::Stream(body) => {
                Pin::new(body).poll_frame(cx).map(|f| f.map(|r| r.map_err(BodyError::Transport)))
            }
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Incoming(body) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Incoming(body) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}
