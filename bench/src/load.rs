//! The load: closed loop, fixed rate, new connections, bulk. One thread, so that on a small
//! machine the generator takes the same share in every variant.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::histogram::Histogram;

const ECHO_MESSAGE: [u8; 64] = [b'm'; 64];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 4096;

/// What one connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Talk {
    /// 64 bytes there and back.
    Echo,
    /// HTTP/1.1 GET with 256 bytes of answer.
    Http,
}

/// How the load is offered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Each connection sends the next request when the last was answered.
    Closed,
    /// So many requests a second over all connections, measured from when each was due.
    Rate(u32),
    /// Connect, one request, close.
    Connect,
    /// One way, as much as goes.
    Bulk,
}

/// One load.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: SocketAddr,
    pub(crate) authority: String,
    pub(crate) talk: Talk,
    pub(crate) shape: Shape,
    pub(crate) connections: usize,
    pub(crate) duration: Duration,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) bytes: u64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

struct Tally {
    histogram: Histogram,
    errors: u64,
    bytes: u64,
}

/// Runs the load to its end.
pub(crate) async fn run(load: Load) -> Result<Outcome> {
    if load.connections == 0 || load.connections > MAX_CONNECTIONS {
        bail!("connections must be 1 to {MAX_CONNECTIONS}, not {}", load.connections);
    }
    let mut clients = Vec::with_capacity(load.connections);
    if !matches!(load.shape, Shape::Connect) {
        for _ in 0..load.connections {
            clients.push(connect(load.target).await?);
        }
    }
    let begin = Instant::now();
    let end = begin + load.duration;
    let mut tasks = Vec::with_capacity(load.connections);
    for number in 0..load.connections {
        let load = load.clone();
        let client = clients.pop();
        tasks.push(tokio::spawn(async move {
            let mut tally = Tally { histogram: Histogram::new(), errors: 0, bytes: 0 };
            let done = one(&load, client, number, begin, end, &mut tally).await;
            if done.is_err() {
                tally.errors += 1;
            }
            tally
        }));
    }
    let mut all = Tally { histogram: Histogram::new(), errors: 0, bytes: 0 };
    for task in tasks {
        let tally = task.await.context("a client task ended early")?;
        all.histogram.merge(&tally.histogram);
        all.errors += tally.errors;
        all.bytes += tally.bytes;
    }
    Ok(Outcome {
        seconds: begin.elapsed().as_secs_f64(),
        requests: all.histogram.count(),
        errors: all.errors,
        bytes: all.bytes,
        p50_us: all.histogram.quantile_us(0.5),
        p90_us: all.histogram.quantile_us(0.9),
        p99_us: all.histogram.quantile_us(0.99),
        p999_us: all.histogram.quantile_us(0.999),
    })
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
        .await
        .with_context(|| format!("connecting to {target} took over {CONNECT_TIMEOUT:?}"))?
        .with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn one(
    load: &Load,
    client: Option<TcpStream>,
    number: usize,
    begin: Instant,
    end: Instant,
    tally: &mut Tally,
) -> Result<()> {
    let request = match load.talk {
        Talk::Echo => ECHO_MESSAGE.to_vec(),
        Talk::Http => format!("GET /bench HTTP/1.1\r\nhost: {}\r\n\r\n", load.authority).into(),
    };
    match (load.shape, client) {
        (Shape::Closed, Some(stream)) => {
            let mut client = Client { stream, talk: load.talk };
            while Instant::now() < end {
                let sent = Instant::now();
                tally.bytes += client.exchange(&request).await?;
                tally.histogram.record(sent.elapsed());
            }
        }
        (Shape::Rate(rate), Some(stream)) => {
            let mut client = Client { stream, talk: load.talk };
            let period = Duration::from_secs_f64(load.connections as f64 / f64::from(rate.max(1)));
            let mut due = begin + period.mul_f64(number as f64 / load.connections as f64);
            while due < end {
                // A client that is late because its last answer was late counts from when the
                // request was due; one that slept counts from when it woke, because the timer's
                // millisecond is not the network's.
                let mut from = due;
                if Instant::now() < due {
                    tokio::time::sleep_until(due.into()).await;
                    from = Instant::now();
                }
                tally.bytes += client.exchange(&request).await?;
                tally.histogram.record(from.elapsed());
                due += period;
            }
        }
        (Shape::Connect, _) => {
            while Instant::now() < end {
                let begun = Instant::now();
                let done: Result<u64> = async {
                    let stream = connect(load.target).await?;
                    Client { stream, talk: load.talk }.exchange(&request).await
                }
                .await;
                match done {
                    Ok(bytes) => {
                        tally.bytes += bytes;
                        tally.histogram.record(begun.elapsed());
                    }
                    Err(_) => tally.errors += 1,
                }
            }
        }
        (Shape::Bulk, Some(mut stream)) => {
            let chunk = vec![b'b'; 256 * 1024];
            while Instant::now() < end {
                stream.write_all(&chunk).await?;
            }
            stream.shutdown().await?;
            tally.bytes += stream.read_u64().await?;
            tally.histogram.record(begin.elapsed());
        }
        (_, None) => bail!("no connection for this client"),
    }
    Ok(())
}

struct Client {
    stream: TcpStream,
    talk: Talk,
}

impl Client {
    /// One request and its whole answer; the number of bytes that came.
    async fn exchange(&mut self, request: &[u8]) -> Result<u64> {
        self.stream.write_all(request).await?;
        let mut buffer = [0u8; 4096];
        let mut held = 0;
        loop {
            if held == buffer.len() {
                bail!("an answer over {} bytes", buffer.len());
            }
            let read = self.stream.read(&mut buffer[held..]).await?;
            if read == 0 {
                bail!("closed within an answer");
            }
            held += read;
            let length = match self.talk {
                Talk::Echo => Some(request.len()),
                Talk::Http => answer_length(&buffer[..held])?,
            };
            if let Some(length) = length
                && held >= length
            {
                return Ok(held as u64);
            }
        }
    }
}

/// Length of head and body, once the head is whole; an error when the status is not 200.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..head]).context("head is not UTF-8")?;
    if !text.starts_with("HTTP/1.1 200") {
        bail!("answer {:?}", text.lines().next().unwrap_or_default());
    }
    for line in text.lines().skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(Some(head + value.trim().parse::<usize>().context("content-length")?));
        }
    }
    bail!("answer without content-length")
}

/// Holds `count` idle connections open, each after one exchange, until standard input closes.
pub(crate) async fn hold(target: SocketAddr, count: usize) -> Result<()> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let stream = connect(target).await?;
        let mut client = Client { stream, talk: Talk::Echo };
        client.exchange(&ECHO_MESSAGE).await?;
        held.push(client);
    }
    println!("holding {count}");
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    drop(held);
    Ok(())
}
