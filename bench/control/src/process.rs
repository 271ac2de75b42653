//! The controller that is measured.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::{Api, free_ports};

/// The kernel's USER_HZ; 100 on every architecture that Linux supports with Rust.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    /// Bytes now.
    pub(crate) resident: u64,
    /// Bytes at most.
    pub(crate) peak: u64,
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
        let deadline = Instant::now() + within;
        loop {
            if self.get("/ready").await.is_ok_and(|text| text.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the controller is not ready");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.monitoring).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// What the controller itself measured so far, from an event to the words of nodes: how many
    /// seconds in all, how many Updates, and how many of these took 200 ms at most.
    pub(crate) async fn convergence(&self) -> Result<[f64; 3]> {
        let text = self.get("/metrics").await?;
        let value = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| name.to_owned())?.parse()?)
        };
        Ok([
            value("pilot_proxy_convergence_time_sum")?,
            value("pilot_proxy_convergence_time_count")?,
            value("pilot_proxy_convergence_time_bucket{le=\"0.2\"}")?,
        ])
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let dir = Path::new("/proc").join(self.child.id().to_string());
        let stat = fs::read_to_string(dir.join("stat")).context("the controller is gone")?;
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
        Ok(Usage { cpu_seconds, resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
    }
}
