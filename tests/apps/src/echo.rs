//! Echo servers that show what arrived: HTTP (with WebSocket and gRPC on the same port), TCP that
//! waits for the client, TCP in which the server speaks first, and raw HTTP bytes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http_server::{Body, Ends, full};

/// Arguments of `echo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who answers: shown in each answer.
    #[arg(long, default_value = "echo")]
    name: String,
    /// Version shown in each answer.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Ports with HTTP/1.x, HTTP/2, WebSocket and gRPC.
    #[arg(long)]
    http: Vec<u16>,
    /// Ports with TCP echo; the first line of the answer says who answered and whom.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Ports with a banner sent before anything is read.
    #[arg(long)]
    banner: Vec<u16>,
    /// Ports that answer an HTTP request with its raw bytes, one request a connection.
    #[arg(long)]
    raw: Vec<u16>,
    /// Ports that accept and read nothing.
    #[arg(long)]
    stall: Vec<u16>,
    /// Ports that read everything and count it.
    #[arg(long)]
    sink: Vec<u16>,
    /// Listen on this address only, instead of all of both families.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Wait this long before each HTTP answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Answer every HTTP request with this status.
    #[arg(long)]
    status: Option<u16>,
}

/// What the servers of one process share.
pub(crate) struct State {
    name: String,
    version: String,
    delay: Duration,
    status: Option<u16>,
    hits: AtomicU64,
    /// Requests seen per `x-echo-key`.
    keys: Mutex<HashMap<String, u64>>,
}

/// Keys that are remembered at most; beyond, all share one counter.
const MAX_KEYS: usize = 100_000;

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let state = Arc::new(State {
        name: args.name,
        version: args.version,
        delay: Duration::from_millis(args.delay_ms),
        status: args.status,
        hits: AtomicU64::new(0),
        keys: Mutex::default(),
    });
    let mut servers = tokio::task::JoinSet::new();
    for port in args.http {
        let listener = crate::net::listen(args.bind, port).await?;
        let state = Arc::clone(&state);
        servers.spawn(crate::http_server::serve(listener, move |request, ends| {
            answer(Arc::clone(&state), request, ends)
        }));
    }
    let kinds = [
        (args.tcp, Kind::Echo),
        (args.banner, Kind::Banner),
        (args.raw, Kind::Raw),
        (args.stall, Kind::Stall),
        (args.sink, Kind::Sink),
    ];
    for (ports, kind) in kinds {
        for port in ports {
            let listener = crate::net::listen(args.bind, port).await?;
            servers.spawn(accept(listener, Arc::clone(&state), kind));
        }
    }
    crate::net::ready(&format!("echo {} {}", state.name, state.version));
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn answer(state: Arc<State>, mut request: Request<Incoming>, ends: Ends) -> Response<Body> {
    let hits = state.hits.fetch_add(1, Ordering::Relaxed) + 1;
    if crate::grpc::is_grpc(request.headers()) {
        return crate::grpc::server::echo(&state.name, &state.version, request).await;
    }
    if crate::websocket::is_upgrade(&request) {
        return crate::websocket::accept(&mut request, state.version.clone());
    }
    if request.method() == http::Method::CONNECT && request.headers().contains_key("x-echo-tunnel")
    {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(tunnel(upgrade, state.version.clone()));
        return Response::new(full(""));
    }
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned).unwrap_or_default()
    };
    let number = |name: &str| header(name).parse::<u64>().ok();
    let (length, trailers, text) = read(body).await;
    let attempt = {
        let mut keys = state.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = if keys.len() < MAX_KEYS { header("x-echo-key") } else { String::new() };
        let count = keys.entry(key).or_default();
        *count += 1;
        *count
    };
    let mut status = state.status.or(number("x-echo-status").and_then(|s| u16::try_from(s).ok()));
    if attempt <= number("x-echo-fail-first").unwrap_or(0) {
        status = status.or(Some(503));
    } else if number("x-echo-fail-first").is_some() {
        status = None;
    }
    let mut delay = state.delay;
    if let Some(ms) = number("x-echo-delay-ms")
        && number("x-echo-delay-first").is_none_or(|first| attempt <= first)
    {
        delay += Duration::from_millis(ms);
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let headers: Vec<Value> = parts
        .headers
        .iter()
        .map(|(n, v)| json!([n.as_str(), String::from_utf8_lossy(v.as_bytes())]))
        .collect();
    let told = json!({
        "name": state.name,
        "version": state.version,
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "http": format!("{:?}", parts.version),
        "headers": headers,
        "trailers": trailers,
        "length": length,
        "body": text,
        "peer": ends.peer.to_string(),
        "accepted": ends.accepted.to_string(),
        "local": ends.local.to_string(),
        "hits": hits,
        "attempt": attempt,
    });
    let body = match number("x-echo-size").and_then(|s| usize::try_from(s).ok()) {
        Some(size) => full(vec![b'x'; size.min(1 << 30)]),
        None if header("x-echo-trailer") == "1" => {
            let mut map = HeaderMap::new();
            map.insert("x-echo-trailer", http::HeaderValue::from_static("the-end"));
            crate::fetch::streamed(vec![
                Frame::data(Bytes::from(told.to_string())),
                Frame::trailers(map),
            ])
        }
        None => full(told.to_string()),
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        status.and_then(|s| http::StatusCode::from_u16(s).ok()).unwrap_or(http::StatusCode::OK);
    for (name, value) in [
        ("x-version", &state.version),
        ("x-pod", &state.name),
        ("content-type", &"application/json".into()),
    ] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    if header("x-echo-trailer") == "1" {
        response.headers_mut().insert("trailer", http::HeaderValue::from_static("x-echo-trailer"));
    }
    response
}

/// What CONNECT opens with `x-echo-tunnel`: the version, an echo, and a last word after the
/// client's end.
async fn tunnel(upgrade: hyper::upgrade::OnUpgrade, version: String) {
    let Ok(upgraded) = upgrade.await else { return };
    let (mut read, mut write) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
    let echo = async {
        write.write_all(format!("{version}:").as_bytes()).await?;
        tokio::io::copy(&mut read, &mut write).await?;
        write.write_all(b":bye").await?;
        write.shutdown().await
    };
    if let Err(error) = echo.await {
        eprintln!("tunnel: {error}");
    }
}

/// Reads a body to its end; keeps the first 64 KiB as text.
async fn read(mut body: Incoming) -> (u64, Value, String) {
    let (mut length, mut trailers, mut kept) = (0, json!({}), Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => {
                length += data.len() as u64;
                let room = (64 * 1024usize).saturating_sub(kept.len());
                kept.extend_from_slice(&data[..data.len().min(room)]);
            }
            Err(frame) => {
                if let Some(map) = frame.trailers_ref() {
                    for (name, value) in map {
                        trailers[name.as_str()] = json!(String::from_utf8_lossy(value.as_bytes()));
                    }
                }
            }
        }
    }
    (length, trailers, String::from_utf8_lossy(&kept).into_owned())
}

#[derive(Clone, Copy)]
enum Kind {
    Echo,
    Banner,
    Raw,
    Stall,
    Sink,
}

async fn accept(listener: TcpListener, state: Arc<State>, kind: Kind) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let served = match kind {
                Kind::Echo => echo(stream, &state, "hello").await,
                Kind::Banner => echo(stream, &state, "220 banner").await,
                Kind::Raw => raw(stream).await,
                Kind::Sink => sink(stream).await,
                Kind::Stall => {
                    tokio::time::sleep(Duration::from_secs(600)).await;
                    drop(stream);
                    Ok(())
                }
            };
            if let Err(error) = served {
                eprintln!("tcp: {error}");
            }
        });
    }
}

/// TCP echo. `220 banner` is said at once; `hello` only after the client's first bytes.
async fn echo(mut stream: TcpStream, state: &State, greeting: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let told = json!({
        "name": state.name,
        "version": state.version,
        "peer": crate::net::canonical(stream.peer_addr()?).to_string(),
        "local": crate::net::canonical(stream.local_addr()?).to_string(),
    });
    let greeting_line = format!("{greeting} {told}\n");
    let mut greeted = false;
    if greeting.starts_with("220") {
        stream.write_all(greeting_line.as_bytes()).await?;
        greeted = true;
    }
    let mut buf = vec![0; 64 * 1024];
    loop {
        let n = stream.read(&mut buf).await?;
        if n == 0 {
            // Half-close: the other direction says good-bye in its own time.
            stream.write_all(b"bye\n").await?;
            return stream.shutdown().await;
        }
        if !greeted {
            stream.write_all(greeting_line.as_bytes()).await?;
            greeted = true;
        }
        stream.write_all(&buf[..n]).await?;
    }
}

/// Reads one HTTP/1 request byte by byte as it comes and sends its bytes back as the body.
async fn raw(mut stream: TcpStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    let mut buf = vec![0; 16 * 1024];
    loop {
        // Whatever follows a request within 100 ms belongs to the picture (smuggling).
        let read = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut buf)).await;
        match read {
            Ok(Ok(0)) => break,
            Ok(Ok(n)) if seen.len() < 1 << 20 => seen.extend_from_slice(&buf[..n]),
            Ok(Ok(_)) => break,
            Ok(Err(error)) => return Err(error),
            Err(_) if seen.windows(4).any(|w| w == b"\r\n\r\n") => break,
            Err(_) => {}
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Raw-Server: Yes\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        seen.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&seen).await?;
    stream.shutdown().await
}

/// Reads to the end, then says how much it was.
async fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buf = vec![0; 256 * 1024];
    let mut total = 0u64;
    loop {
        let n = stream.read(&mut buf).await?;
        if n == 0 {
            break;
        }
        total += n as u64;
    }
    stream.write_all(format!("{total}\n").as_bytes()).await?;
    stream.shutdown().await
}
