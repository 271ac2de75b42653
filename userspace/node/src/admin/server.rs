//! The server: few connections, short headers, no bodies, loopback names only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::patient::Patient;
use super::reply::Body;
use super::{Pages, Query, Reply};

/// Connections at a time; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 32;
/// A connection has this long for its headers, also between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A reader may stand still for so long; then its connection ends.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Buffer of a connection, and so the longest request head.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin server, bound.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    header_timeout: Duration,
    write_timeout: Duration,
    /// Whether it answers to any name.
    anybody: bool,
}

impl Server {
    /// Takes over a listener, which has to be non-blocking. Needs a runtime around it.
    ///
    /// # Errors
    /// The event loop refuses it.
    pub fn from_std(listener: std::net::TcpListener) -> std::io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            header_timeout: HEADER_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            anybody: false,
        })
    }

    /// The same for those outside of the node: GET and HEAD, under any name. For pages that may be
    /// seen by all.
    #[must_use]
    pub fn for_anybody(mut self) -> Self {
        self.anybody = true;
        self
    }

    #[cfg(test)]
    pub(super) fn with_write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    #[cfg(test)]
    pub(super) fn with_header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, pages: Pages) {
        let pages = Arc::new(pages);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin API: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let pages = Arc::clone(&pages);
            let anybody = self.anybody;
            let stream = Patient::new(stream, self.write_timeout);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let pages = Arc::clone(&pages);
                    async move { Ok::<_, Infallible>(answer(&pages, &request, anybody)) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(self.header_timeout)
                    .max_buf_size(MAX_HEAD)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "admin API: connection ended");
                }
                drop(permit);
            });
        }
    }
}

fn answer(pages: &Pages, request: &Request<Incoming>, anybody: bool) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET && request.method() != Method::POST {
        return Reply::text(405, "GET, HEAD or POST\n").into_response(false);
    }
    if anybody {
        if request.method() == Method::POST {
            return Reply::text(405, "GET or HEAD\n").into_response(false);
        }
        let query = Query::new(request.method().clone(), "");
        return pages.answer(request.uri().path(), &query).into_response(head);
    }
    // A web page that a browser on this host shows must not reach the API under a name of its
    // own (DNS rebinding).
    let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    if !is_loopback_name(host) {
        let text = format!("Host {host:?}: the admin API answers to loopback names only\n");
        return Reply::text(403, text).into_response(head);
    }
    // The same page could send a POST across origins; browsers then name the origin.
    if request.headers().contains_key("origin") && request.method() == Method::POST {
        return Reply::text(403, "requests of web pages are not answered\n").into_response(head);
    }
    let query = Query::new(request.method().clone(), request.uri().query().unwrap_or(""));
    pages.answer(request.uri().path(), &query).into_response(head)
}

pub(super) fn is_loopback_name(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
