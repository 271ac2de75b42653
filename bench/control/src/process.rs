//! The controller that is measured, and what processes use.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::{Api, free_ports};
use crate::metrics::Metrics;

/// The kernel's USER_HZ; 100 on every architecture that Linux supports with Rust.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    /// Bytes now (`VmRSS`).
    pub(crate) resident: u64,
    /// Bytes at most (`VmHWM`).
    pub(crate) peak: u64,
    /// Bytes now that are no file's: heap and stacks (`RssAnon`).
    pub(crate) anonymous: u64,
}

impl Usage {
    pub(crate) fn of(process: u32) -> Result<Self> {
        let dir = Path::new("/proc").join(process.to_string());
        let stat = fs::read_to_string(dir.join("stat")).context("the process is gone")?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let mut cpu_seconds = 0.0;
        for field in [11, 12] {
            let ticks: f64 = fields.get(field).context("short stat")?.parse()?;
            cpu_seconds += ticks / TICKS_PER_SECOND;
        }
        let status = fs::read_to_string(dir.join("status"))?;
        let bytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib: u64 = line
                .and_then(|line| line.trim().strip_suffix("kB"))
                .with_context(|| format!("no {name}"))?
                .trim()
                .parse()?;
            Ok(kib * 1024)
        };
        Ok(Self {
            cpu_seconds,
            resident: bytes("VmRSS:")?,
            peak: bytes("VmHWM:")?,
            anonymous: bytes("RssAnon:")?,
        })
    }
}

/// GET over plain HTTP; the body of an answer that has to be 200.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0, so that the answer comes in one piece and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {text}");
    Ok(body.to_owned())
}

/// Waits until `/ready` says so.
pub(crate) async fn ready(address: SocketAddr, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let Err(reason) = get(address, "/ready").await else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(reason.context("not ready"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A process, ended with it.
pub(crate) struct Controller {
    child: Child,
    grpc: SocketAddr,
    monitoring: SocketAddr,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    pub(crate) fn start(binary: &Path, api: &Api) -> Result<Self> {
        let [grpc, monitoring, webhook] =
            free_ports()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let log = fs::File::create(std::env::temp_dir().join("fl-bench-controller.log"))?;
        let child = Command::new(binary)
            .arg("--kubeconfig")
            .arg(api.kubeconfig())
            .args(["--grpc-listen", &grpc.to_string()])
            .args(["--monitoring-listen", &monitoring.to_string()])
            .args(["--webhook-listen", &webhook.to_string()])
            .args(["--tls-name", "localhost", "--no-webhook", "--log-level", "warn"])
            .current_dir(api.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| binary.display().to_string())?;
        Ok(Self { child, grpc, monitoring })
    }

    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Waits until it can serve nodes.
    pub(crate) async fn ready(&self, within: Duration) -> Result<()> {
        ready(self.monitoring, within).await.context("the controller")
    }

    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(get(self.monitoring, "/metrics").await?))
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id()).context("the controller")
    }
}
