//! An HTTP server for HTTP/1.x and HTTP/2 with prior knowledge on one port.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

/// Any response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is known at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The two ends of the connection that a request came over.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    /// What `getpeername()` says.
    pub(crate) peer: SocketAddr,
    /// What `accept()` said: has to be the same.
    pub(crate) accepted: SocketAddr,
    /// What `getsockname()` says.
    pub(crate) local: SocketAddr,
}

/// Serves until the process ends.
pub(crate) async fn serve<F, R>(listener: TcpListener, handler: F) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>, Ends) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    let handler = Arc::new(handler);
    loop {
        let (stream, accepted) = listener.accept().await?;
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            if let Err(error) = connection(stream, accepted, handler).await {
                eprintln!("connection of {accepted}: {error:#}");
            }
        });
    }
}

async fn connection<F, R>(
    stream: TcpStream,
    accepted: SocketAddr,
    handler: Arc<F>,
) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>, Ends) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    stream.set_nodelay(true)?;
    let ends = Ends {
        peer: crate::net::canonical(stream.peer_addr()?),
        accepted: crate::net::canonical(accepted),
        local: crate::net::canonical(stream.local_addr()?),
    };
    // "PRI" begins the preface of HTTP/2 and no method that anybody uses.
    let mut first = [0; 3];
    let seen = stream.peek(&mut first).await?;
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(handler(request, ends).await) }
    });
    let io = TokioIo::new(stream);
    if &first[..seen] == b"PRI" {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(io, service)
            .await?;
    } else {
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(true)
            .preserve_header_case(true)
            .serve_connection(io, service)
            .with_upgrades()
            .await?;
    }
    Ok(())
}
