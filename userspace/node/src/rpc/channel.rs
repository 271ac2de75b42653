//! An HTTP/2 connection as tonic's clients use one.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tonic::body::Body;
use tonic::codegen::Service;

pub(super) type Sender = SendRequest<Body>;

/// One connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: Sender,
    token: HeaderValue,
    authority: String,
    address: SocketAddr,
}

impl Channel {
    pub(super) fn new(
        sender: Sender,
        token: HeaderValue,
        authority: String,
        address: SocketAddr,
    ) -> Self {
        Self { sender, token, authority, address }
    }

    /// Whom it is connected to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn addressed(&self, uri: Uri) -> Result<Uri, http::Error> {
        let mut parts = uri.into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.parse()?);
        Ok(Uri::from_parts(parts)?)
    }
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error(transparent)]
    Request(#[from] http::Error),
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, CallError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.sender.poll_ready(context).map_err(CallError::from)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.addressed(std::mem::take(request.uri_mut())) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Box::pin(std::future::ready(Err(error.into()))),
        }
        request.headers_mut().insert(AUTHORIZATION, self.token.clone());
        let answer = self.sender.send_request(request);
        Box::pin(async move { Ok(answer.await?) })
    }
}
