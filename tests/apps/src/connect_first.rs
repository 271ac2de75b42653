//! A process whose first act is `connect()`: no runtime, no name lookup, nothing before it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

/// Arguments of `connect-first`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to connect to.
    to: SocketAddr,
    /// What to send once connected.
    #[arg(default_value = "connect-first\n")]
    data: String,
}

impl Args {
    /// The arguments without a parser, so that nothing comes before `connect()`.
    pub(crate) fn from_env() -> Option<Self> {
        let mut args = std::env::args().skip(1);
        if args.next()? != "connect-first" {
            return None;
        }
        let to = args.next()?.parse().ok()?;
        Some(Self { to, data: args.next().unwrap_or_else(|| "connect-first\n".into()) })
    }
}

/// Connects, sends, reads to the end or for two seconds.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let connected = TcpStream::connect_timeout(&args.to, Duration::from_secs(10));
    let connect_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut received = Vec::new();
    let mut error = None;
    let ok = connected.is_ok();
    match connected {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            if let Err(e) = stream.write_all(args.data.as_bytes()) {
                error = Some(e.to_string());
            } else {
                let mut buf = [0; 4096];
                match stream.read(&mut buf) {
                    Ok(n) => received.extend_from_slice(&buf[..n]),
                    Err(e) => error = Some(e.to_string()),
                }
            }
        }
        Err(e) => error = Some(e.to_string()),
    }
    println!(
        "{}",
        json!({
            "connected": ok,
            "connect_ms": connect_ms,
            "received": String::from_utf8_lossy(&received),
            "error": error,
        })
    );
    Ok(())
}
