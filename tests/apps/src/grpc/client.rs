//! A gRPC client for the echo service and for ratings.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use serde_json::{Map, Value, json};

use super::{Messages, encode};
use crate::http_client::{Connection, Version};

/// Arguments of `grpc`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// host:port
    authority: String,
    /// Path of the method.
    #[arg(default_value = "/fairlead.Echo/Unary")]
    method: String,
    /// Messages to send; each after the answer to the one before for `Bidi`.
    #[arg(short, long, default_value = "hello")]
    message: Vec<String>,
    /// `name: value`, as often as wanted.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Calls over the one connection.
    #[arg(short = 'n', long, default_value_t = 1)]
    count: u32,
    /// `grpc-timeout`, and how long the client itself waits.
    #[arg(long)]
    deadline_ms: Option<u64>,
}

/// Makes the calls and prints a JSON object a line.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut connection = Connection::open(&args.authority, Version::Http2).await?;
    for _ in 0..args.count {
        let start = Instant::now();
        let limit = Duration::from_millis(args.deadline_ms.unwrap_or(15_000));
        let told = match tokio::time::timeout(limit, call(&mut connection, &args)).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => json!({ "status": 0, "error": format!("{error:#}") }),
            Err(_) => json!({ "status": 0, "error": "deadline exceeded" }),
        };
        let mut told = told;
        told["ms"] = json!(start.elapsed().as_secs_f64() * 1e3);
        println!("{told}");
    }
    Ok(())
}

async fn call(connection: &mut Connection, args: &Args) -> anyhow::Result<Value> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut request = Request::post(args.method.as_str())
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(ms) = args.deadline_ms {
        request = request.header("grpc-timeout", format!("{ms}m"));
    }
    for header in &args.headers {
        if let Some((name, value)) = header.split_once(':') {
            request = request.header(name.trim(), value.trim());
        }
    }
    let bidi = args.method.ends_with("/Bidi");
    let mut waiting = args.message.iter();
    // The call begins with the first message; the others follow the answers.
    if let Some(first) = waiting.next() {
        sender.send(Frame::<Bytes>::data(encode(first))).await?;
    }
    let request = request.body(crate::fetch::channel_body(receiver))?;
    let mut sender = Some(sender);
    if !bidi {
        for message in waiting.by_ref() {
            if let Some(sender) = &sender {
                sender.send(Frame::data(encode(message))).await?;
            }
        }
        sender = None;
    }
    let response = connection.send(request, &args.authority).await?;
    let (parts, body) = response.into_parts();
    let mut messages = Messages::new(body);
    let mut received = Vec::new();
    while let Some(text) = messages.next().await? {
        received.push(text);
        match (waiting.next(), &sender) {
            (Some(next), Some(open)) => open.send(Frame::data(encode(next))).await?,
            _ => sender = None,
        }
    }
    let show = |map: &http::HeaderMap| -> Map<String, Value> {
        map.iter()
            .map(|(n, v)| (n.to_string(), json!(String::from_utf8_lossy(v.as_bytes()))))
            .collect()
    };
    let trailers = messages.trailers.unwrap_or_default();
    let status = trailers.get("grpc-status").or(parts.headers.get("grpc-status"));
    Ok(json!({
        "status": parts.status.as_u16(),
        "grpc_status": status.and_then(|v| v.to_str().ok()),
        "headers": show(&parts.headers),
        "trailers": show(&trailers),
        "messages": received,
    }))
}

/// One unary call over a connection of its own: the answer's text.
pub(crate) async fn unary(
    authority: &str,
    host: &str,
    method: &str,
    message: &str,
    headers: &[(http::HeaderName, http::HeaderValue)],
) -> anyhow::Result<String> {
    let mut connection = Connection::open(authority, Version::Http2).await?;
    let mut request =
        Request::post(method).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(crate::http_server::full(encode(message)))?;
    let response = connection.send(request, host).await?;
    anyhow::ensure!(response.status() == 200, "HTTP {}", response.status());
    let early = response.headers().get("grpc-status").cloned();
    let mut messages = Messages::new(response.into_body());
    let mut answer = None;
    while let Some(text) = messages.next().await? {
        answer = Some(text);
    }
    let status = messages.trailers.as_ref().and_then(|t| t.get("grpc-status").cloned()).or(early);
    let status = status.map(|s| s.to_str().unwrap_or("?").to_owned()).unwrap_or_default();
    anyhow::ensure!(status == "0", "grpc-status {status:?}");
    answer.ok_or_else(|| anyhow::anyhow!("no message"))
}
