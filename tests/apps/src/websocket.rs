//! WebSocket (RFC 6455), as much as an echo needs: the handshake, and data frames that are not
//! fragmented.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http_server::{Body, full};
use crate::sha1::{base64, sha1};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MAX_FRAME: u64 = 1 << 20;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get(UPGRADE);
    upgrade.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Accepts the upgrade and echoes each frame after `<version>:`.
pub(crate) fn accept(request: &mut Request<Incoming>, version: String) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").map(|k| k.as_bytes().to_vec());
    let Some(mut key) = key else {
        let mut response = Response::new(full("no sec-websocket-key"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    key.extend_from_slice(GUID.as_bytes());
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut io = TokioIo::new(upgraded);
        while let Ok(Some(payload)) = read_frame(&mut io).await {
            let mut answer = format!("{version}:").into_bytes();
            answer.extend_from_slice(&payload);
            if write_frame(&mut io, &answer, false).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(value) = base64(&sha1(&key)).parse() {
        headers.insert("sec-websocket-accept", value);
    }
    response
}

/// Reads a frame; `None` at a close frame or the end.
async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Option<Vec<u8>>> {
    let mut head = [0; 2];
    if io.read_exact(&mut head).await.is_err() || head[0] & 0x0f == 8 {
        return Ok(None);
    }
    let length = match head[1] & 0x7f {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        short => u64::from(short),
    };
    if length > MAX_FRAME {
        bail!("frame of {length} bytes");
    }
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::try_from(length)?];
    io.read_exact(&mut payload).await?;
    for (i, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[i % 4];
    }
    Ok(Some(payload))
}

async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    payload: &[u8],
    masked: bool,
) -> anyhow::Result<()> {
    let mut frame = vec![0x81];
    let bit = if masked { 0x80 } else { 0 };
    match u16::try_from(payload.len()) {
        Ok(n) if n < 126 => frame.push(u8::try_from(n)? | bit),
        Ok(n) => {
            frame.push(126 | bit);
            frame.extend_from_slice(&n.to_be_bytes());
        }
        Err(_) => {
            frame.push(127 | bit);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    if masked {
        let mask = [0x12, 0x34, 0x56, 0x78];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
    } else {
        frame.extend_from_slice(payload);
    }
    io.write_all(&frame).await?;
    Ok(io.flush().await?)
}

/// Arguments of `ws`.
#[derive(clap::Args)]
pub(crate) struct ClientArgs {
    /// http://host[:port]/path
    url: String,
    /// Frames to send.
    #[arg(short = 'n', long, default_value_t = 3)]
    count: u32,
    /// Milliseconds between them.
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
}

/// Upgrades, sends frames, prints what came back.
pub(crate) async fn run_client(args: ClientArgs) -> anyhow::Result<()> {
    let (authority, path) = crate::net::split_url(&args.url)?;
    let mut stream = crate::net::connect(&authority).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 * 1024 {
            bail!("no end of the head");
        }
        let byte = stream.read_u8().await;
        head.push(byte.with_context(|| format!("after {:?}", String::from_utf8_lossy(&head)))?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut frames = Vec::new();
    let mut error = None;
    let start = Instant::now();
    if status == 101 {
        for i in 0..args.count {
            let sent = format!("frame {i}");
            let turn = async {
                write_frame(&mut stream, sent.as_bytes(), true).await?;
                read_frame(&mut stream).await
            };
            match tokio::time::timeout(Duration::from_secs(5), turn).await {
                Ok(Ok(Some(payload))) => {
                    frames.push(String::from_utf8_lossy(&payload).into_owned())
                }
                Ok(Ok(None)) => error = Some("closed".to_owned()),
                Ok(Err(e)) => error = Some(format!("{e:#}")),
                Err(_) => error = Some("timed out".to_owned()),
            }
            if error.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
        }
    }
    println!(
        "{}",
        json!({
            "status": status,
            "accept_ok": head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            "frames": frames,
            "error": error,
            "ms": start.elapsed().as_secs_f64() * 1e3,
        })
    );
    Ok(())
}
