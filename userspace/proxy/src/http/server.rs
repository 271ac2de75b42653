//! Downstream HTTP connections: limits, the version, draining.

use std::convert::Infallible;
use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::arrive::Arrival;
use super::exchange::Reported;
use super::io::{Answering, Held, InFlight, Switching, Watched};
use super::service;
use crate::body::Body;
use crate::live::{Entry, Live};
use crate::outbound::Outgoing;

/// A request's line and headers together.
const HEADERS: usize = 64 * 1024;
/// A client may take this long from the first byte of a request to the end of its headers.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// An idle connection of HTTP/1 stays open for so long when the daemon drains: its client may be sending
/// a request at this very moment. The next response says `Connection: close` (RFC 9112 section 9.6);
/// one in HTTP/2 has GOAWAY for that.
const LAST_REQUEST: Duration = Duration::from_secs(5);
/// Concurrent requests of one HTTP/2 connection.
const STREAMS: u32 = 1024;
/// Streams that a client may open and reset before they were looked at (rapid reset,
/// CVE-2023-44487).
const PENDING_RESETS: usize = 64;
/// Streams that we reset because the client broke the protocol.
const ERROR_RESETS: usize = 1024;
/// Credit of a stream and of a connection: what a slow application can make us hold.
const WINDOWS: (u32, u32) = (256 * 1024, 4 * 1024 * 1024);
/// What a stream may have buffered for sending.
const SEND_BUFFER: usize = 256 * 1024;

/// Serves a connection that a pod of this node began, of which `first` was read already. What it returns is for the log: how the
/// client broke the protocol.
pub(crate) async fn serve_outbound(
    outgoing: Outgoing,
    tcp: TcpStream,
    first: Bytes,
    http2: bool,
    entry: &Entry,
) -> Option<String> {
    let draining = outgoing.caller.shared.draining.subscribe();
    let outgoing = Arc::new(outgoing);
    serve((tcp, first), http2, entry, draining, move |request, switch| {
        service::outbound(Arc::clone(&outgoing), request, switch)
    })
    .await
}

/// Serves a connection to a pod of this node, likewise.
pub(crate) async fn serve_inbound<T>(
    arrival: Arrival,
    io: T,
    first: Bytes,
    http2: bool,
    entry: &Entry,
) -> Option<String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let draining = arrival.receiver.shared.draining.subscribe();
    let arrival = Arc::new(arrival);
    serve((io, first), http2, entry, draining, move |request, switch| {
        let arrival = Arc::clone(&arrival);
        async move { arrival.serve(request, switch).await }
    })
    .await
}

async fn serve<T, F, R>(
    (io, first): (T, Bytes),
    http2: bool,
    entry: &Entry,
    mut draining: watch::Receiver<bool>,
    handle: F,
) -> Option<String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Body>, Option<Switch>) -> R + Send + 'static,
    R: Future<Output = Response<Reported>> + Send + 'static,
{
    let in_flight = InFlight::default();
    let limit = (!http2).then_some(HEADER_TIME);
    let io = TokioIo::new(Watched::new(io, first, in_flight.clone(), limit, entry.live()));
    let heads = in_flight.clone();
    let switched = Switched::default();
    let (switching, live) = (switched.clone(), entry.live());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let answering = in_flight.enter();
        let switches = super::request::may_switch(&request);
        let switch = switches.then(|| Switch {
            client: hyper::upgrade::on(&mut request),
            switched: switching.clone(),
            live: Arc::clone(&live),
            answering: in_flight.enter(),
            switching: (!http2).then(|| in_flight.switching()),
        });
        let response = handle(request.map(Body::Incoming), switch);
        async move {
            let mut response = response.await;
            if answering.is_last() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Held { body, _answering: answering }))
        }
    });
    let mut draining = pin!(async move {
        // An error means that the data plane is gone; its connections go on.
        if draining.wait_for(|drain| *drain).await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let cut = entry.until_cut();
    let result = if http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS as u32)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(ERROR_RESETS)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_send_buf_size(SEND_BUFFER)
            .auto_date_header(false)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = &mut draining => {
                connection.as_mut().graceful_shutdown();
                finish(connection, entry).await
            }
            _ = cut => Ok(()),
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .preserve_header_case(true)
            .max_header_size(HEADERS)
            .auto_date_header(false)
            .serve_connection(io, service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = &mut draining => {
                heads.leave();
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = sleep(LAST_REQUEST) => {
                        connection.as_mut().graceful_shutdown();
                        finish(connection, entry).await
                    }
                    _ = entry.until_cut() => Ok(()),
                }
            }
            _ = cut => Ok(()),
        }
    };
    let broken = result.err().and_then(|error| broken_protocol(&error));
    let refused = heads.refused().map(|why| format!("the client broke the protocol: {why}"));
    let broken = refused.or(broken);
    // What switched protocols belongs to the connection: its place is taken until that has ended.
    let mut left = std::mem::take(&mut *switched.0.lock());
    tokio::select! {
        () = async { while left.join_next().await.is_some() {} } => {}
        _ = entry.until_cut() => {}
    }
    broken
}

/// In words, when the client broke the protocol: hyper has refused it, and no request tells of it.
fn broken_protocol(error: &hyper::Error) -> Option<String> {
    let mut text = error.to_string();
    let mut broken = error.is_parse();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        broken |= inner
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
        broken |= inner.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_library);
        source = inner.source();
    }
    tracing::debug!(error = text, "downstream HTTP connection ended");
    broken.then(|| format!("the client broke the protocol: {text}"))
}

/// What a connection carries after requests that switched protocols. Dropped, it ends.
#[derive(Clone, Default)]
pub(super) struct Switched(Arc<Mutex<JoinSet<()>>>);

/// A client that may switch protocols.
pub(crate) struct Switch {
    client: OnUpgrade,
    switched: Switched,
    live: Arc<Live>,
    answering: Answering,
    switching: Option<Switching>,
}

impl Switch {
    /// Carries what comes after the switch, once the client has it.
    pub(super) fn carry<F>(self, carry: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let (client, answering) = (self.client, self.answering);
        if let Some(switching) = self.switching {
            switching.switched();
        }
        let mut switched = self.switched.0.lock();
        // An HTTP/2 connection may live through many.
        while switched.try_join_next().is_some() {}
        switched.spawn(async move {
            if let Ok(client) = client.await {
                carry(client).await;
            }
            drop(answering);
        });
    }

    /// Whether the connection carries others beside it (HTTP/2).
    pub(super) fn is_one_of_many(&self) -> bool {
        self.switching.is_none()
    }

    /// The connection, for policy that changes while it lives.
    pub(super) fn live(&self) -> &Live {
        &self.live
    }
}

/// What is under way goes on, until it is done or the drain's deadline passes.
async fn finish<C>(connection: C, entry: &Entry) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    tokio::select! {
        result = connection => result,
        _ = entry.until_cut() => Ok(()),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
