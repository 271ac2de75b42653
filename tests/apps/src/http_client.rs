//! An HTTP client over one connection, HTTP/1.x or HTTP/2 with prior knowledge.

use std::net::SocketAddr;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::http_server::Body;

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Version {
    /// HTTP/1.0
    #[value(name = "1.0")]
    Http10,
    /// HTTP/1.1
    #[value(name = "1.1")]
    Http11,
    /// HTTP/2 with prior knowledge
    #[value(name = "2")]
    Http2,
}

/// A connection that can send requests one after the other.
pub(crate) struct Connection {
    sender: Sender,
    /// Our own end.
    pub(crate) local: SocketAddr,
    /// What `getpeername()` says of the other end.
    pub(crate) peer: SocketAddr,
}

enum Sender {
    Http1(http1::SendRequest<Body>, Version),
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    /// Connects to `host:port`.
    pub(crate) async fn open(authority: &str, version: Version) -> anyhow::Result<Self> {
        let stream = crate::net::connect(authority).await?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let io = TokioIo::new(stream);
        let sender = if version == Version::Http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) =
                http1::Builder::new().preserve_header_case(true).handshake(io).await?;
            tokio::spawn(connection.with_upgrades());
            Sender::Http1(sender, version)
        };
        Ok(Self { sender, local, peer })
    }

    /// Whether the server has closed it meanwhile.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender, _) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Sends one request. HTTP/1 takes the host from `authority`, HTTP/2 puts it into the URI.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Body>,
        authority: &str,
    ) -> anyhow::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender, version) => {
                *request.version_mut() = match version {
                    Version::Http10 => http::Version::HTTP_10,
                    _ => http::Version::HTTP_11,
                };
                if !request.headers().contains_key(http::header::HOST) {
                    request.headers_mut().insert(http::header::HOST, authority.parse()?);
                }
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Sender::Http2(sender) => {
                *request.version_mut() = http::Version::HTTP_2;
                let host = match request.headers_mut().remove(http::header::HOST) {
                    Some(host) => host.to_str()?.to_owned(),
                    None => authority.to_owned(),
                };
                let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
                *request.uri_mut() = format!("http://{host}{path}").parse()?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }
}
