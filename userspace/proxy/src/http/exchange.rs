//! One request and its response: an object whose drop guarantees the metrics and exactly one
//! access log line. It travels with the response's body, so that it ends when the last byte has
//! been taken.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fairlead_telemetry::access_log::{Captured, LogFormat};
use fairlead_telemetry::{HttpEvent, LogRecord, Protocol};
use fairlead_types::{ResponseFlags, SpiffeId};
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use super::headers::{REQUEST_ID, is_grpc};
use super::local_reply::LocalReply;
use super::pool::Lease;
use crate::body::{Body, BodyError};
use crate::choice::Chosen;
use crate::labels::Parties;
use crate::state::Shared;

/// One request.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    pub(crate) parties: Parties,
    pub(crate) grpc: bool,
    began: Instant,
    start: SystemTime,
    log: Option<(Arc<LogFormat>, Captured)>,
    method: Method,
    /// As the client sent it.
    target: Uri,
    host: Option<HeaderValue>,
    version: Version,
    remote: SocketAddr,
    local: SocketAddr,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) upstream_local: Option<SocketAddr>,
    pub(crate) upstream_identity: Option<SpiffeId>,
    pub(crate) flags: ResponseFlags,
    details: Option<Cow<'static, str>>,
    pub(crate) reason: Option<Cow<'static, str>>,
    pub(crate) transport_failure: Option<String>,
    pub(crate) service_time: Option<Duration>,
    code: u16,
    grpc_status: Option<u16>,
    response_headers: Captured,
    pub(crate) request_bytes: Arc<AtomicU64>,
    pub(crate) response_bytes: u64,
    /// Counted busy until the response has ended.
    pub(crate) endpoint: Option<Chosen>,
    /// The connection that goes back to its pool once the response has ended.
    pub(crate) lease: Option<Lease>,
    /// The response has been taken to its end.
    finished: bool,
}

impl Exchange {
    pub(crate) fn new<B>(
        shared: &Arc<Shared>,
        parties: Parties,
        request: &Request<B>,
        remote: SocketAddr,
        local: SocketAddr,
    ) -> Box<Self> {
        let log = shared.telemetry.access_log().active().map(|format| {
            let captured = format.capture_request(request.headers());
            (format, captured)
        });
        Box::new(Self {
            shared: Arc::clone(shared),
            parties,
            grpc: is_grpc(request.headers()),
            began: Instant::now(),
            start: SystemTime::now(),
            log,
            method: request.method().clone(),
            target: request.uri().clone(),
            host: request.headers().get(http::header::HOST).cloned(),
            version: request.version(),
            remote,
            local,
            route: None,
            cluster: None,
            upstream: None,
            upstream_local: None,
            upstream_identity: None,
            flags: ResponseFlags::None,
            details: None,
            reason: None,
            transport_failure: None,
            service_time: None,
            code: 0,
            grpc_status: None,
            response_headers: Captured::default(),
            request_bytes: Arc::default(),
            response_bytes: 0,
            endpoint: None,
            lease: None,
            finished: false,
        })
    }

    /// Notes the id that the request got here, for the log. What else a hop adds is none of it.
    pub(crate) fn note_request_id(&mut self, headers: &HeaderMap) {
        if let Some((format, captured)) = &mut self.log {
            format.add_request(captured, &REQUEST_ID, headers);
        }
    }

    /// The upstream is reached without a proof of who it is.
    pub(crate) fn unproven(&mut self) {
        self.parties.destination_unproven();
        self.upstream_identity = None;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Time since the request began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The proxy answers itself.
    pub(crate) fn local(&mut self, reply: &LocalReply) -> Response<Body> {
        self.flags = reply.flags;
        self.details = Some(reply.details.clone());
        self.reason = Some(reply.reason.clone());
        let mut response = reply.response(self.grpc);
        if reply.closes && self.version != Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The response as it goes to the client.
    pub(crate) fn respond(
        mut self: Box<Self>,
        response: Response<Body>,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Response<Reported> {
        self.note_response(response.status().as_u16(), response.headers());
        let (parts, body) = response.into_parts();
        // Not the server's to decide: what it sends all the same would break the client's stream.
        let body = if self.method == Method::HEAD { Body::Empty } else { body };
        let mut reported = Reported { body, exchange: Some(self), deadline };
        if reported.body.is_end_stream() {
            reported.finish();
        }
        Response::from_parts(parts, reported)
    }

    /// Notes status and headers, for the log.
    pub(crate) fn note_response(&mut self, code: u16, headers: &HeaderMap) {
        self.code = code;
        if self.details.is_none() {
            self.details = Some("via_upstream".into());
        }
        self.note_grpc(headers);
        if let Some((format, _)) = &self.log {
            self.response_headers = format.capture_response(headers);
        }
    }

    fn note_grpc(&mut self, headers: &HeaderMap) {
        if self.grpc
            && let Some(status) = headers.get("grpc-status")
        {
            self.grpc_status = status.to_str().ok().and_then(|s| s.parse().ok());
        }
    }

    /// Everything has been sent.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.finished && self.flags == ResponseFlags::None {
            self.flags = ResponseFlags::DownstreamConnectionTermination;
            self.details = Some("downstream_remote_disconnect".into());
            self.reason.get_or_insert("the client went away".into());
        }
        let duration = self.began.elapsed();
        let request_bytes = self.request_bytes.load(Ordering::Relaxed);
        let event = HttpEvent {
            code: self.code,
            grpc_status: self.grpc_status,
            flags: self.flags,
            duration,
            request_bytes,
            response_bytes: self.response_bytes,
        };
        let protocol = if self.grpc { Protocol::Grpc } else { Protocol::Http };
        let (first, second) = self.parties.labels(protocol);
        self.shared.telemetry.http_series(&first).record(&event);
        if let Some(second) = second {
            self.shared.telemetry.http_series(&second).record(&event);
        }
        let Some((format, request_headers)) = self.log.take() else { return };
        let host = self.host.as_ref().and_then(|h| h.to_str().ok());
        let path = match self.target.path_and_query() {
            Some(path) => path.as_str(),
            None => self.target.path(),
        };
        self.shared.telemetry.access_log().write(
            &format,
            &LogRecord {
                start: self.start,
                duration,
                protocol: Some(match self.version {
                    Version::HTTP_10 => "HTTP/1.0",
                    Version::HTTP_2 => "HTTP/2",
                    _ => "HTTP/1.1",
                }),
                method: Some(self.method.as_str()),
                path: Some(path),
                authority: self.target.authority().map(http::uri::Authority::as_str).or(host),
                scheme: Some(self.target.scheme_str().unwrap_or("http")),
                request_headers,
                response_headers: std::mem::take(&mut self.response_headers),
                response_code: (self.code != 0).then_some(self.code),
                grpc_status: self.grpc_status,
                flags: self.flags,
                response_code_details: self.details.as_deref(),
                upstream_transport_failure_reason: self.transport_failure.as_deref(),
                reason: self.reason.as_deref(),
                bytes_received: request_bytes,
                bytes_sent: self.response_bytes,
                upstream_host: self.upstream,
                upstream_cluster: self.cluster.as_deref(),
                upstream_local: self.upstream_local,
                upstream_service_time: self.service_time,
                downstream_local: Some(self.local),
                downstream_remote: Some(self.remote),
                route_name: self.route.as_deref(),
                reporter: Some(self.parties.reporter()),
                source: Some(&self.parties.source),
                destination: Some(&self.parties.destination),
                downstream_identity: self.parties.verified.as_ref(),
                upstream_identity: self.upstream_identity.as_ref(),
                ..LogRecord::default()
            },
        );
    }
}

/// A response's body with its exchange.
pub(crate) struct Reported {
    body: Body,
    exchange: Option<Box<Exchange>>,
    /// The request's timeout covers its response (Envoy).
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Reported {
    /// A body that nobody reports (an upgrade has its own end).
    pub(crate) fn silent(body: Body) -> Self {
        Self { body, exchange: None, deadline: None }
    }

    fn finish(&mut self) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn break_off(&mut self, flags: ResponseFlags, details: &'static str, reason: String) {
        if let Some(exchange) = &mut self.exchange {
            exchange.flags = flags;
            exchange.details = Some(details.into());
            exchange.reason = Some(reason.into());
        }
        self.exchange = None;
    }
}

impl http_body::Body for Reported {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    this.deadline = None;
                    let reason = "the response took longer than the request's timeout";
                    let flags = ResponseFlags::UpstreamRequestTimeout;
                    this.break_off(flags, "response_timeout", reason.into());
                    return Poll::Ready(Some(Err(BodyError::Filter(reason))));
                }
            }
            Poll::Ready(None) => this.finish(),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(exchange) = &mut this.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.response_bytes += data.len() as u64;
                    } else if let Some(trailers) = frame.trailers_ref() {
                        exchange.note_grpc(trailers);
                    }
                }
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.finish();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                let flags = ResponseFlags::UpstreamConnectionTermination;
                let reason = error.to_string();
                this.break_off(flags, "upstream_reset_after_response_started", reason);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
