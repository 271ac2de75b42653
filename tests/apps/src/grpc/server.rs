//! The echo service: `Unary`, `ServerStream` (ten messages), `Bidi` (each message as it comes),
//! `Fail` (status 7 in the trailers), `Slow` (two seconds). And `grpc.health.v1.Health/Check`, as
//! kubelet's probes ask it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use serde_json::json;

use super::{Messages, encode};
use crate::http_server::Body;

/// A gRPC response with this body.
pub(crate) fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

/// Trailers with a status.
pub(crate) fn trailers(status: &'static str, message: &'static str) -> Frame<Bytes> {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from_static(status));
    map.insert("grpc-message", HeaderValue::from_static(message));
    map.insert("x-echo-trailer", HeaderValue::from_static("the-end"));
    Frame::trailers(map)
}

/// `HealthCheckResponse { status: SERVING }`, length-prefixed.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];

/// Answers one call.
pub(crate) async fn echo(name: &str, version: &str, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/grpc.health.v1.Health/Check" {
        let serving = Frame::data(Bytes::from_static(SERVING));
        return response(crate::fetch::streamed(vec![serving, trailers("0", "")]));
    }
    let timeout = request.headers().get("grpc-timeout").and_then(|v| v.to_str().ok());
    let about = json!({ "name": name, "version": version, "grpc-timeout": timeout });
    let mut messages = Messages::new(request.into_body());
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let method = path.rsplit('/').next().unwrap_or_default().to_owned();
    tokio::spawn(async move {
        match method.as_str() {
            "Bidi" => {
                while let Ok(Some(text)) = messages.next().await {
                    let answer = encode(&format!("{about} {text}"));
                    if sender.send(Frame::data(answer)).await.is_err() {
                        return;
                    }
                }
            }
            "Fail" => {
                sender.send(trailers("7", "not%20today")).await.ok();
                return;
            }
            method => {
                let text = messages.next().await.ok().flatten().unwrap_or_default();
                if method == "Slow" {
                    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                }
                let count = if method == "ServerStream" { 10 } else { 1 };
                for _ in 0..count {
                    let answer = encode(&format!("{about} {text}"));
                    if sender.send(Frame::data(answer)).await.is_err() {
                        return;
                    }
                }
            }
        }
        sender.send(trailers("0", "")).await.ok();
    });
    response(crate::fetch::channel_body(receiver))
}
