//! The validating webhook: the rules of `fairlead validate`, asked before anything is stored.
//!
//! It rejects what could never work and never stands in the way of a repair: it is asked about
//! CREATE and UPDATE of the mesh's kinds only, never about deletion or status, and an UPDATE that
//! leaves the `spec` of an object as it was passes, however bad that is (labels, annotations,
//! finalizers of something that is on its way out). Nodes apply the same rules to all they get, so
//! what gets past a webhook that cannot be reached is still not enforced wrongly: it is refused
//! there, and status says so.

mod config;
mod decide;
mod review;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_telemetry::Registry;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use config::{WebhookSettings, run as keep_configuration};
use decide::Decision;

/// The path that the API server calls.
pub const PATH: &str = "/validate";
/// Bytes of the largest review: an object of 1.5 MiB, the one before, and what is around them.
const MAX_REVIEW_BYTES: usize = 8 << 20;
/// Most reviews at a time.
const MAX_REVIEWS: usize = 16;
/// Longest wait for the rest of a request and for a free place; the API server waits 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Answers the API server.
pub struct Webhook {
    registry: Arc<Registry>,
    places: Semaphore,
}

impl Webhook {
    /// Counts in `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, places: Semaphore::new(MAX_REVIEWS) }
    }

    /// Answers one request. Whoever sends it learns nothing but what is wrong with what it sent.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data: Send> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.uri().path() != PATH {
            return self.error(StatusCode::NOT_FOUND, "no such path");
        }
        if request.method() != Method::POST {
            return self.error(StatusCode::METHOD_NOT_ALLOWED, "POST a review");
        }
        let work = async {
            let place = self.places.acquire().await;
            // The place is for the body too: that is what takes memory.
            let body = Limited::new(request.into_body(), MAX_REVIEW_BYTES).collect().await;
            (place, body.map(http_body_util::Collected::to_bytes))
        };
        let (_place, body) = match timeout(REQUEST_TIMEOUT, work).await {
            Ok((Ok(place), Ok(body))) => (place, body),
            Ok((_, Err(_))) => {
                return self.error(StatusCode::PAYLOAD_TOO_LARGE, "the body is not readable");
            }
            Ok((Err(_), _)) | Err(_) => {
                return self.error(StatusCode::SERVICE_UNAVAILABLE, "too busy");
            }
        };
        // A large object takes milliseconds; streams to nodes must not wait for it.
        let decided = tokio::task::spawn_blocking(move || {
            let review = review::read(&body)?;
            let decision = decide::decide(&review);
            Ok::<_, String>((review::answer(&review, &decision), decision))
        });
        match decided.await {
            Ok(Ok((answer, decision))) => {
                self.count(&decision);
                respond(StatusCode::OK, Bytes::from(answer))
            }
            Ok(Err(reason)) => self.error(StatusCode::BAD_REQUEST, &reason),
            Err(_) => self.error(StatusCode::INTERNAL_SERVER_ERROR, "interrupted"),
        }
    }

    fn count(&self, decision: &Decision) {
        // Only kinds that are known have series: this port answers whoever asks.
        let Some(of) = &decision.subject else { return };
        let [group, version, resource] = [of.group, of.version, of.resource.as_str()];
        let labels = [("group", group), ("version", version), ("resource", resource)];
        match decision.denied.first() {
            None => {
                let help = "Resources that were found valid.";
                self.registry.counter("galley_validation_passed", help, &labels).inc();
            }
            Some(_) => {
                let [group, version, resource] = labels;
                let labels = [group, version, resource, ("reason", "invalid_resource")];
                let help = "Resources that were refused.";
                self.registry.counter("galley_validation_failed", help, &labels).inc();
            }
        }
    }

    fn error(&self, status: StatusCode, text: &str) -> Response<Full<Bytes>> {
        let help = "Requests to the webhook that were no review.";
        self.registry
            .counter("galley_validation_http_error", help, &[("status", status.as_str())])
            .inc();
        respond(status, Bytes::from(format!("{{\"error\":{}}}", serde_json::Value::from(text))))
    }
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[doc(hidden)]
pub mod fuzz {
    //! What the fuzz targets reach. No part of the API.

    /// Reads, decides and answers; the answer, if it was a review.
    #[must_use]
    pub fn review(bytes: &[u8]) -> Option<Vec<u8>> {
        let review = super::review::read(bytes).ok()?;
        let decision = super::decide::decide(&review);
        Some(super::review::answer(&review, &decision))
    }
}

#[cfg(test)]
mod tests;
