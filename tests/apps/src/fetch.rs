//! One HTTP request, or several over one connection, told as JSON.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::http_client::{Connection, Version};
use crate::http_server::full;

/// Arguments of `get`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// http://host[:port]/path
    url: String,
    /// Method.
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// `name: value`, as often as wanted.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Body.
    #[arg(short, long, default_value = "")]
    data: String,
    /// Body of this many bytes instead of `data`.
    #[arg(long)]
    size: Option<usize>,
    /// Send the body in chunks, without a length, with this trailer at the end (`name: value`).
    #[arg(long)]
    trailer: Option<String>,
    /// Connect here (host:port) instead of the host of the URL.
    #[arg(long)]
    to: Option<String>,
    /// HTTP version.
    #[arg(long, value_enum, default_value = "1.1")]
    http: Version,
    /// Requests over the same connection.
    #[arg(short = 'n', long, default_value_t = 1)]
    count: u32,
    /// Milliseconds to wait for each.
    #[arg(long, default_value_t = 15_000)]
    timeout_ms: u64,
    /// End with an error unless every answer was a success (2xx).
    #[arg(long)]
    fail: bool,
}

/// Sends the requests and prints one JSON object, or one a line for several.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (authority, path) = crate::net::split_url(&args.url)?;
    let to = args.to.clone().unwrap_or_else(|| authority.clone());
    let host = authority.strip_suffix(":80").unwrap_or(&authority).to_owned();
    let limit = Duration::from_millis(args.timeout_ms);
    let mut connection = None;
    let mut failed = 0_u32;
    for _ in 0..args.count {
        let start = Instant::now();
        let told =
            tokio::time::timeout(limit, one(&args, &to, &host, &path, &mut connection)).await;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let mut told = match told {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                connection = None;
                json!({ "status": 0, "error": format!("{error:#}") })
            }
            Err(_) => {
                connection = None;
                json!({ "status": 0, "error": "timed out" })
            }
        };
        told["ms"] = json!(ms);
        println!("{told}");
        failed += u32::from(!(200..300).contains(&told["status"].as_u64().unwrap_or(0)));
    }
    anyhow::ensure!(!args.fail || failed == 0, "{failed} of {} requests failed", args.count);
    Ok(())
}

async fn one(
    args: &Args,
    to: &str,
    host: &str,
    path: &str,
    connection: &mut Option<Connection>,
) -> anyhow::Result<Value> {
    if connection.is_none() {
        *connection = Some(Connection::open(to, args.http).await?);
    }
    let Some(open) = connection.as_mut() else { anyhow::bail!("no connection") };
    let (local, peer) = (open.local, open.peer);
    let mut request = Request::builder().method(args.method.as_str()).uri(path);
    for header in &args.headers {
        let (name, value) =
            header.split_once(':').ok_or_else(|| anyhow::anyhow!("no colon in {header:?}"))?;
        request = request.header(name.trim(), value.trim());
    }
    let data = match args.size {
        Some(size) => Bytes::from(vec![b'x'; size]),
        None => Bytes::from(args.data.clone()),
    };
    let body = match &args.trailer {
        Some(trailer) => {
            let (name, value) = trailer
                .split_once(':')
                .ok_or_else(|| anyhow::anyhow!("no colon in the trailer"))?;
            request = request.header("trailer", name.trim());
            let mut map = http::HeaderMap::new();
            map.insert(http::HeaderName::try_from(name.trim())?, value.trim().parse()?);
            streamed(vec![http_body::Frame::data(data), http_body::Frame::trailers(map)])
        }
        None => full(data),
    };
    let response = open.send(request.body(body)?, host).await?;
    let (parts, body) = response.into_parts();
    let mut headers = serde_json::Map::new();
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers
            .entry(name.as_str())
            .and_modify(|old| *old = json!(format!("{},{value}", old.as_str().unwrap_or_default())))
            .or_insert_with(|| json!(value));
    }
    let collected = body.collect().await?;
    let trailers: serde_json::Map<String, Value> = collected
        .trailers()
        .map(|t| {
            t.iter()
                .map(|(n, v)| (n.to_string(), json!(String::from_utf8_lossy(v.as_bytes()))))
                .collect()
        })
        .unwrap_or_default();
    let bytes = collected.to_bytes();
    let shown = &bytes[..bytes.len().min(256 * 1024)];
    let text = String::from_utf8_lossy(shown).into_owned();
    Ok(json!({
        "status": parts.status.as_u16(),
        "http": format!("{:?}", parts.version),
        "headers": headers,
        "trailers": trailers,
        "length": bytes.len(),
        "json": serde_json::from_str::<Value>(&text).ok(),
        "body": text,
        "local": local.to_string(),
        "peer": peer.to_string(),
    }))
}

/// A body of these frames, sent in chunks.
pub(crate) fn streamed(frames: Vec<http_body::Frame<Bytes>>) -> crate::http_server::Body {
    struct Frames(std::collections::VecDeque<http_body::Frame<Bytes>>);
    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
            std::task::Poll::Ready(self.0.pop_front().map(Ok))
        }
    }
    Frames(frames.into()).boxed_unsync()
}

/// A body fed through a channel.
pub(crate) fn channel_body(
    receiver: tokio::sync::mpsc::Receiver<http_body::Frame<Bytes>>,
) -> crate::http_server::Body {
    struct Feed(tokio::sync::mpsc::Receiver<http_body::Frame<Bytes>>);
    impl http_body::Body for Feed {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }
    Feed(receiver).boxed_unsync()
}
