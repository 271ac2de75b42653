//! What a page answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::Value;

enum Content {
    Whole(Option<Bytes>),
    Pieces(Box<dyn Iterator<Item = String> + Send>),
}

/// The body of a reply: whole, or made piece by piece while it is sent, so that a large page does
/// not need its size in memory.
pub struct Body(Content);

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        let piece = match &mut self.0 {
            Content::Whole(whole) => whole.take(),
            Content::Pieces(pieces) => pieces.next().map(Bytes::from),
        };
        Poll::Ready(piece.map(|p| Ok(hyper::body::Frame::data(p))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.0 {
            Content::Whole(whole) => {
                hyper::body::SizeHint::with_exact(whole.as_ref().map_or(0, |b| b.len() as u64))
            }
            Content::Pieces(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// A status, a content type and a body.
pub struct Reply {
    status: u16,
    content_type: &'static str,
    content: Content,
}

impl Reply {
    /// Plain text.
    #[must_use]
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            content: Content::Whole(Some(text.into().into())),
        }
    }

    /// JSON, indented for people.
    #[must_use]
    pub fn json(status: u16, value: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            content: Content::Whole(Some(format!("{value:#}\n").into())),
        }
    }

    /// Text that is made while it is sent.
    #[must_use]
    pub fn pieces(
        content_type: &'static str,
        pieces: impl Iterator<Item = String> + Send + 'static,
    ) -> Self {
        Self { status: 200, content_type, content: Content::Pieces(Box::new(pieces)) }
    }

    pub(super) fn into_response(self, head: bool) -> Response<Body> {
        let content = if head { Content::Whole(None) } else { self.content };
        let mut response = Response::new(Body(content));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
