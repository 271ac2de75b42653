//! A load generator: requests over so many connections at such a rate, and what came of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http_client::{Connection, Version};
use crate::http_server::full;

/// Arguments of `load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// http://host[:port]/path, or tcp://host:port for a line over the echo protocol.
    url: String,
    /// Connections side by side.
    #[arg(short, long, default_value_t = 4)]
    connections: u32,
    /// Requests in all; without it `duration` rules.
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Seconds.
    #[arg(short, long, default_value_t = 5.0)]
    duration: f64,
    /// Requests a second in all; 0: as fast as they go.
    #[arg(short, long, default_value_t = 0.0)]
    rps: f64,
    /// `name: value`, as often as wanted.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Method.
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// HTTP version.
    #[arg(long, value_enum, default_value = "1.1")]
    http: Version,
    /// A connection for each request.
    #[arg(long)]
    fresh: bool,
    /// Open another connection when the server has closed an idle one, as it may.
    #[arg(long)]
    reopen: bool,
    /// Connect here (host:port) instead of the host of the URL.
    #[arg(long)]
    to: Option<String>,
    /// Milliseconds to wait for an answer.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Print the sequence of pods that answered (one connection only).
    #[arg(long)]
    sequence: bool,
}

#[derive(Default)]
struct Seen {
    ok: u64,
    failed: u64,
    statuses: BTreeMap<u16, u64>,
    versions: BTreeMap<String, u64>,
    pods: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    micros: Vec<u64>,
    sequence: Vec<String>,
    reopened: u64,
    /// When the first and the last failure were, in milliseconds since the start.
    failures_ms: Option<(u64, u64)>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.reopened += other.reopened;
        let merge = |into: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>| {
            for (key, n) in from {
                *into.entry(key).or_default() += n;
            }
        };
        for (status, n) in other.statuses {
            *self.statuses.entry(status).or_default() += n;
        }
        merge(&mut self.versions, other.versions);
        merge(&mut self.pods, other.pods);
        merge(&mut self.errors, other.errors);
        self.micros.extend(other.micros);
        self.sequence.extend(other.sequence);
        self.failures_ms = match (self.failures_ms, other.failures_ms) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (a, b) => a.or(b),
        };
    }
}

struct Plan {
    args: Args,
    to: String,
    host: String,
    path: String,
    tcp: bool,
    start: Instant,
    taken: AtomicU64,
}

impl Plan {
    /// The number of the next request and when it is due; `None` when there is none left.
    fn next(&self) -> Option<Instant> {
        let n = self.taken.fetch_add(1, Ordering::Relaxed);
        if self.args.requests.is_some_and(|max| n >= max) {
            return None;
        }
        let due = if self.args.rps > 0.0 {
            self.start + Duration::from_secs_f64(n as f64 / self.args.rps)
        } else {
            Instant::now()
        };
        let end = self.start + Duration::from_secs_f64(self.args.duration);
        if self.args.requests.is_none() && due >= end {
            return None;
        }
        Some(due)
    }
}

/// Runs the load and prints one JSON object.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let tcp = args.url.starts_with("tcp://");
    let (authority, path) = match args.url.strip_prefix("tcp://") {
        Some(authority) => (authority.to_owned(), String::new()),
        None => crate::net::split_url(&args.url)?,
    };
    let plan = Arc::new(Plan {
        to: args.to.clone().unwrap_or_else(|| authority.clone()),
        host: authority.strip_suffix(":80").unwrap_or(&authority).to_owned(),
        path,
        tcp,
        start: Instant::now(),
        taken: AtomicU64::new(0),
        args,
    });
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..plan.args.connections {
        workers.spawn(worker(Arc::clone(&plan)));
    }
    let mut seen = Seen::default();
    while let Some(done) = workers.join_next().await {
        seen.add(done?);
    }
    let seconds = plan.start.elapsed().as_secs_f64();
    seen.micros.sort_unstable();
    let percentile = |p: f64| {
        let at = ((seen.micros.len() as f64 * p).ceil() as usize).saturating_sub(1);
        seen.micros.get(at).map_or(0.0, |m| *m as f64 / 1e3)
    };
    println!(
        "{}",
        json!({
            "requests": seen.ok + seen.failed,
            "ok": seen.ok,
            "failed": seen.failed,
            "reopened": seen.reopened,
            "seconds": seconds,
            "rps": (seen.ok + seen.failed) as f64 / seconds,
            "statuses": seen.statuses,
            "versions": seen.versions,
            "pods": seen.pods,
            "errors": seen.errors,
            "failures_ms": seen.failures_ms.map(|(a, b)| [a, b]),
            "p50_ms": percentile(0.5),
            "p90_ms": percentile(0.9),
            "p99_ms": percentile(0.99),
            "max_ms": percentile(1.0),
            "sequence": seen.sequence,
        })
    );
    Ok(())
}

async fn worker(plan: Arc<Plan>) -> Seen {
    let mut seen = Seen::default();
    let mut connection = None;
    let limit = Duration::from_millis(plan.args.timeout_ms);
    while let Some(due) = plan.next() {
        tokio::time::sleep_until(due.into()).await;
        if plan.args.reopen && connection.as_ref().is_some_and(Connection::is_closed) {
            connection = None;
            seen.reopened += 1;
        }
        // From when it was due: a stalled answer counts for those that waited behind it too.
        let from = if plan.args.rps > 0.0 { due } else { Instant::now() };
        let outcome = tokio::time::timeout(limit, async {
            if plan.tcp { line(&plan).await } else { request(&plan, &mut connection).await }
        })
        .await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("timed out")),
        };
        if plan.args.fresh || outcome.is_err() {
            connection = None;
        }
        match outcome {
            Ok((status, version, pod)) => {
                seen.ok += 1;
                *seen.statuses.entry(status).or_default() += 1;
                if plan.args.sequence {
                    seen.sequence.push(pod.clone());
                }
                *seen.versions.entry(version).or_default() += 1;
                *seen.pods.entry(pod).or_default() += 1;
                let micros = from.elapsed().as_micros();
                seen.micros.push(u64::try_from(micros).unwrap_or(u64::MAX));
            }
            Err(error) => {
                seen.failed += 1;
                let at = u64::try_from(plan.start.elapsed().as_millis()).unwrap_or(u64::MAX);
                let (first, _) = seen.failures_ms.unwrap_or((at, at));
                seen.failures_ms = Some((first, at));
                *seen.errors.entry(format!("{error:#}")).or_default() += 1;
                // A refused connection comes back at once; do not spin on it.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    seen
}

async fn request(
    plan: &Plan,
    connection: &mut Option<Connection>,
) -> anyhow::Result<(u16, String, String)> {
    let fresh = match connection.take() {
        Some(open) => open,
        None => Connection::open(&plan.to, plan.args.http).await?,
    };
    let open = connection.insert(fresh);
    let mut request = Request::builder().method(plan.args.method.as_str()).uri(plan.path.as_str());
    for header in &plan.args.headers {
        if let Some((name, value)) = header.split_once(':') {
            request = request.header(name.trim(), value.trim());
        }
    }
    let response = open.send(request.body(full(""))?, &plan.host).await?;
    let (parts, body) = response.into_parts();
    body.collect().await?;
    let header = |name: &str| {
        parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let closing = header("connection").eq_ignore_ascii_case("close");
    let told = (parts.status.as_u16(), header("x-version"), header("x-pod"));
    if closing {
        *connection = None;
    }
    Ok(told)
}

/// One connection of the echo protocol: who answered.
async fn line(plan: &Plan) -> anyhow::Result<(u16, String, String)> {
    let mut stream = crate::net::connect(&plan.to).await?;
    stream.write_all(b"ping\n").await?;
    let mut received = Vec::new();
    let mut buf = [0; 4096];
    while !received.ends_with(b"ping\n") {
        let n = stream.read(&mut buf).await?;
        anyhow::ensure!(n > 0, "closed without an answer");
        received.extend_from_slice(&buf[..n]);
    }
    let text = String::from_utf8_lossy(&received);
    let told: serde_json::Value = text
        .find('{')
        .and_then(|at| text[at..].lines().next())
        .and_then(|l| serde_json::from_str(l).ok())
        .ok_or_else(|| anyhow::anyhow!("not the echo protocol: {text:?}"))?;
    let word = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    Ok((200, word("version"), word("name")))
}
