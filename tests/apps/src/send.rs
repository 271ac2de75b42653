//! Raw bytes over TCP: what came back, when, and how the connection ended.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How long is waited at least for what has to come: the words of a server that speaks first, and the
/// end of one that is told that there is nothing more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `send`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// host:port
    to: String,
    /// What to send, with \r \n \t \0 \\ \xHH; none sends nothing.
    #[arg(default_value = "")]
    data: String,
    /// Send the bytes of this file instead.
    #[arg(long)]
    file: Option<std::path::PathBuf>,
    /// Repeat the data this often.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Wait this long between pieces of `--piece` bytes.
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
    /// Size of a piece; 0 sends all at once.
    #[arg(long, default_value_t = 0)]
    piece: usize,
    /// Shut the sending side down after the data.
    #[arg(long)]
    half_close: bool,
    /// Stop reading when the other side was silent for this long.
    #[arg(long, default_value_t = 1_000)]
    quiet_ms: u64,
    /// Wait for the first byte before sending anything.
    #[arg(long)]
    server_first: bool,
    /// Begin from this address.
    #[arg(long)]
    source: Option<SocketAddr>,
    /// Open this many connections one after the other; prints a line for each.
    #[arg(long, default_value_t = 1)]
    count: u32,
}

/// How a connection ended, as the client sees it.
enum End {
    Fin,
    Reset,
    Quiet,
    Error(String),
}

/// Sends and prints what came of it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let data = match &args.file {
        Some(path) => std::fs::read(path)?,
        None => crate::net::unescape(&args.data)?,
    };
    let data = data.repeat(args.repeat);
    for _ in 0..args.count {
        let start = Instant::now();
        let to = crate::net::resolve(&args.to).await?;
        match tokio::time::timeout(Duration::from_secs(10), open(to, args.source)).await {
            Ok(Ok(stream)) => exchange(&args, &data, stream, start).await?,
            Ok(Err(error)) => println!(
                "{}",
                json!({"connected": false, "error": error.to_string(), "end": "refused", "received": "", "bytes": 0})
            ),
            Err(_) => println!(
                "{}",
                json!({"connected": false, "error": "timed out", "end": "timeout", "received": "", "bytes": 0})
            ),
        }
    }
    Ok(())
}

async fn open(to: SocketAddr, source: Option<SocketAddr>) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(
    args: &Args,
    data: &[u8],
    mut stream: TcpStream,
    start: Instant,
) -> anyhow::Result<()> {
    let (local, peer) = (stream.local_addr()?, stream.peer_addr().ok());
    let connect_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut received = Vec::new();
    let mut first_byte_ms = None;
    let quiet = Duration::from_millis(args.quiet_ms);
    let mut buf = vec![0; 64 * 1024];
    let mut end = None;
    if args.server_first {
        end = read(&mut stream, &mut buf, quiet.max(PATIENCE), &mut received).await;
        first_byte_ms = (!received.is_empty()).then(|| start.elapsed().as_secs_f64() * 1e3);
    }
    if end.is_none() {
        let piece = if args.piece == 0 { data.len().max(1) } else { args.piece };
        for part in data.chunks(piece) {
            if let Err(error) = stream.write_all(part).await {
                end = Some(ended(&error));
                break;
            }
            if args.pace_ms > 0 {
                tokio::time::sleep(Duration::from_millis(args.pace_ms)).await;
            }
        }
    }
    let mut quiet = quiet;
    if args.half_close {
        stream.shutdown().await.ok();
        // Whoever is told that there is nothing more has to end by itself.
        quiet = quiet.max(PATIENCE);
    }
    // What was received before an error of the sending side is of interest too.
    loop {
        let before = received.len();
        let over = read(&mut stream, &mut buf, quiet, &mut received).await;
        if first_byte_ms.is_none() && received.len() > before {
            first_byte_ms = Some(start.elapsed().as_secs_f64() * 1e3);
        }
        if let Some(over) = over {
            end = end.filter(|e| matches!(e, End::Reset)).or(Some(over));
            break;
        }
    }
    let (end, error) = match end {
        Some(End::Fin) => ("fin", None),
        Some(End::Reset) => ("reset", None),
        Some(End::Quiet) | None => ("open", None),
        Some(End::Error(error)) => ("error", Some(error)),
    };
    let shown = &received[..received.len().min(64 * 1024)];
    println!(
        "{}",
        json!({
            "connected": true,
            "connect_ms": connect_ms,
            "first_byte_ms": first_byte_ms,
            "ms": start.elapsed().as_secs_f64() * 1e3,
            "received": String::from_utf8_lossy(shown),
            "bytes": received.len(),
            "end": end,
            "error": error,
            "local": local.to_string(),
            "peer": peer.map(|p| p.to_string()),
        })
    );
    Ok(())
}

async fn read(
    stream: &mut TcpStream,
    buf: &mut [u8],
    quiet: Duration,
    into: &mut Vec<u8>,
) -> Option<End> {
    match tokio::time::timeout(quiet, stream.read(buf)).await {
        Err(_) => Some(End::Quiet),
        Ok(Ok(0)) => Some(End::Fin),
        Ok(Ok(n)) => {
            into.extend_from_slice(&buf[..n]);
            None
        }
        Ok(Err(error)) => Some(ended(&error)),
    }
}

fn ended(error: &std::io::Error) -> End {
    match error.kind() {
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => End::Reset,
        _ => End::Error(error.to_string()),
    }
}
