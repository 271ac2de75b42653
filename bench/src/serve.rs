//! The servers that a benchmark measures against: as little work as possible per request.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// HTTP/1.1 with a fixed body.
pub(crate) const HTTP: u16 = 8080;
/// Echo of whatever comes.
pub(crate) const ECHO: u16 = 9000;
/// Reads and throws away.
pub(crate) const SINK: u16 = 9001;

const BODY: usize = 256;

/// Serves all ports until the process is ended.
pub(crate) async fn run() -> Result<()> {
    let http = listener(HTTP).await?;
    let echo = listener(ECHO).await?;
    let sink = listener(SINK).await?;
    println!("serving");
    tokio::try_join!(
        accept(http, |s| Box::pin(serve_http(s))),
        accept(echo, |s| Box::pin(serve_echo(s))),
        accept(sink, |s| Box::pin(serve_sink(s))),
    )?;
    Ok(())
}

type Served = std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

async fn listener(port: u16) -> Result<TcpListener> {
    // Dual stack where there is IPv6; IPv4 alone elsewhere.
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(v6).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("listening on port {port}")),
    }
}

async fn accept(listener: TcpListener, serve: fn(TcpStream) -> Served) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A connection that breaks is the client's business; it counts errors.
        tokio::spawn(serve(stream));
    }
}

async fn serve_http(mut stream: TcpStream) -> std::io::Result<()> {
    let response = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut buffer = vec![0; 16 * 1024];
    let mut held = 0;
    let mut out = Vec::with_capacity(64 * 1024);
    loop {
        let read = stream.read(&mut buffer[held..]).await?;
        if read == 0 {
            return Ok(());
        }
        held += read;
        let mut start = 0;
        while let Some(end) = find_end(&buffer[start..held]) {
            start += end;
            out.extend_from_slice(response.as_bytes());
        }
        buffer.copy_within(start..held, 0);
        held -= start;
        if held == buffer.len() {
            return Err(std::io::Error::other("request head over 16 KiB"));
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
    }
}

/// Length of the request head at the start of `bytes`; requests of the benchmark have no body.
fn find_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4)
}

async fn serve_echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn serve_sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total: u64 = 0;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            // The count goes back so that the client measures what arrived, not what it buffered.
            return stream.write_all(&total.to_be_bytes()).await;
        }
        total += read as u64;
    }
}
