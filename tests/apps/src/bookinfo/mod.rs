//! A bookshop page in the shape of Istio's Bookinfo: productpage calls details and reviews,
//! reviews v2 and v3 call ratings over gRPC, ratings reads from a database over TCP.

pub(crate) mod details;
pub(crate) mod productpage;
pub(crate) mod ratings;
pub(crate) mod ratingsdb;
pub(crate) mod reviews;

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::http_client::{Connection, Version};
use crate::http_server::{Body, full};

/// How long a service waits for another one.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Headers that an application passes on, so that traces and users stay together.
const PASSED_ON: [&str; 10] = [
    "end-user",
    "x-request-id",
    "traceparent",
    "tracestate",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
];

/// The headers of a request that go on to the next service.
fn passed_on(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let known = PASSED_ON.iter().map(|n| HeaderName::from_static(n));
    known.filter_map(|name| headers.get(&name).map(|v| (name.clone(), v.clone()))).collect()
}

/// A JSON answer.
fn answer(status: StatusCode, version: &str, told: &Value) -> Response<Body> {
    let mut response = Response::new(full(told.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    if let Ok(version) = version.parse() {
        response.headers_mut().insert("x-version", version);
    }
    response
}

/// Asks another service of the application: its status and JSON, or why not.
async fn ask(authority: &str, path: &str, headers: &[(HeaderName, HeaderValue)]) -> (u16, Value) {
    let call = async {
        let mut connection = Connection::open(authority, Version::Http11).await?;
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = connection.send(request.body(full(""))?, authority).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        let told = serde_json::from_slice(&body)
            .unwrap_or_else(|_| json!({ "error": String::from_utf8_lossy(&body) }));
        anyhow::Ok((status, told))
    };
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => (0, json!({ "error": format!("{error:#}") })),
        Err(_) => (0, json!({ "error": "timed out" })),
    }
}
