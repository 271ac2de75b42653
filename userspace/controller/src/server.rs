//! Listeners: gRPC and webhook over TLS, monitoring over plain HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Connections of one listener at a time; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 8 * 1024;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request, also between requests.
const HEAD: Duration = Duration::from_secs(30);
/// An HTTP/2 connection on which nothing comes for so long is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Time for the answer to that.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams of one connection: a daemon has one, and asks for a few certificates.
const MAX_STREAMS: u32 = 256;
/// Bytes of a stream that may be on their way here.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that wait for a slow connection.
const SEND_BUFFER: usize = 64 << 10;
/// Pause after a failed accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens at an address. `[::]` stands for all addresses of either family, and for those of IPv4
/// where there is no IPv6.
///
/// # Errors
/// The address is in use, or not ours.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Accepts for ever.
async fn accept<F, C>(listener: TcpListener, connection: F) -> Infallible
where
    F: Fn(TcpStream, OwnedSemaphorePermit) -> C,
    C: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Updates are written whole; none has to wait for another.
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection(stream, place));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves gRPC over TLS for ever; `answer` gets every request.
pub async fn serve_grpc<A, R>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    answer: A,
) -> Infallible
where
    A: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<tonic::body::Body>> + Send + 'static,
{
    let tls = TlsAcceptor::from(tls);
    accept(listener, move |stream, place| {
        let (tls, answer) = (tls.clone(), answer.clone());
        async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await else { return };
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_TIMEOUT)
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(STREAM_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        }
    })
    .await
}

/// Serves HTTP over TLS for ever: the webhook.
pub async fn serve_https<A, R>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    answer: A,
) -> Infallible
where
    A: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let tls = TlsAcceptor::from(tls);
    accept(listener, move |stream, place| {
        let (tls, answer) = (tls.clone(), answer.clone());
        async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await else { return };
            serve_http1(TokioIo::new(stream), answer).await;
            drop(place);
        }
    })
    .await
}

/// Serves HTTP for ever: monitoring.
pub async fn serve_http<A, R>(listener: TcpListener, answer: A) -> Infallible
where
    A: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    accept(listener, move |stream, place| {
        let answer = answer.clone();
        async move {
            serve_http1(TokioIo::new(stream), answer).await;
            drop(place);
        }
    })
    .await
}

async fn serve_http1<I, A, R>(io: I, answer: A)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    A: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(io, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

/// What monitoring asks.
pub trait Health: Send + Sync + 'static {
    /// What is not ready yet; empty: all is.
    fn waits_for(&self) -> Vec<&'static str>;
    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// `/metrics`, `/ready` and `/live`.
pub fn monitoring(health: &dyn Health, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, health.metrics()),
        "/live" | "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/ready" | "/healthz/ready" => {
            let waits = health.waits_for();
            if waits.is_empty() {
                text(StatusCode::OK, "ok\n".to_owned())
            } else {
                let waits = format!("waiting for: {}\n", waits.join(", "));
                text(StatusCode::SERVICE_UNAVAILABLE, waits)
            }
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics, /ready, /live\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// The answer to a gRPC method that there is none of.
#[must_use]
pub fn unimplemented() -> Response<tonic::body::Body> {
    tonic::Status::unimplemented("no such method").into_http()
}
