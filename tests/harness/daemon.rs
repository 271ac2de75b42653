//! The node daemon of a node: start, stop, kill, and its admin API.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::process::{Place, Process};
use crate::wait::eventually;

/// Port of the admin API, on the node's loopback.
pub const ADMIN_PORT: u16 = 15000;

/// How long a daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What a daemon needs to know; it can be started again and again with the same.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// Directory of YAML.
    pub config: PathBuf,
    /// Directory of the CA, shared by the nodes.
    pub ca: PathBuf,
    /// Root of the node's cgroups.
    pub cgroup: PathBuf,
    /// Where eBPF objects are pinned.
    pub pins: PathBuf,
    /// Standard output and error.
    pub log: PathBuf,
    /// Whether `config` and `ca` are what it goes by; otherwise `extra` says.
    pub directories: bool,
    /// More arguments.
    pub extra: Vec<String>,
}

/// A node daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
}

impl Daemon {
    /// Starts the daemon; does not wait.
    ///
    /// # Errors
    /// The binary is missing or does not start.
    pub fn spawn(settings: &Settings, netns: &Netns, cgroup: &Path) -> Result<Self> {
        let path = |p: &Path| p.display().to_string();
        let mut args = vec![
            "--node".to_owned(),
            settings.node.clone(),
            "--cgroup-root".to_owned(),
            path(&settings.cgroup),
            "--pin-dir".to_owned(),
            path(&settings.pins),
            "--admin".to_owned(),
            SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)).to_string(),
        ];
        if settings.directories {
            let (config, ca) = (path(&settings.config), path(&settings.ca));
            args.extend(["--config-dir".to_owned(), config, "--ca-dir".to_owned(), ca]);
        }
        args.extend(settings.extra.iter().cloned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let program = crate::process::binary("fairlead-node", "FAIRLEAD_TEST_NODE")?;
        let place = Place { netns, cgroup };
        let process = Process::spawn(place, &program, &args, &[], &settings.log)?;
        Ok(Self { process })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until `/ready` says so.
    ///
    /// # Errors
    /// It ends or is not ready in time; with what it printed.
    pub fn wait_ready(&mut self, netns: &Netns) -> Result<()> {
        let ready = eventually("the daemon to be ready", READY_LIMIT, || {
            ensure!(self.process.alive(), "the daemon ended");
            Ok((get(netns, "/ready")?.0 == 200).then_some(()))
        });
        ready.with_context(|| tail(&self.process.output()))
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(limit).map(|_| ())
    }

    /// SIGKILL, and its end.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(Duration::from_secs(5)).map(|_| ())
    }
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// GET on the admin API of a node: status and body.
///
/// # Errors
/// It cannot be reached.
pub fn get(netns: &Netns, path: &str) -> Result<(u16, String)> {
    request(netns, "GET", path)
}

/// A request to the admin API of a node: status and body.
///
/// # Errors
/// It cannot be reached.
pub fn request(netns: &Netns, method: &str, path: &str) -> Result<(u16, String)> {
    netns.enter(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // HTTP/1.0, so that the answer comes in one piece and ends with the connection.
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    })
}

/// JSON of the admin API.
///
/// # Errors
/// It cannot be reached, or says no, or what it says is not JSON.
pub fn json(netns: &Netns, path: &str) -> Result<Value> {
    let (status, body) = get(netns, path)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(serde_json::from_str(&body)?)
}

/// The metrics of a node.
///
/// # Errors
/// The daemon cannot be reached.
pub fn metrics(netns: &Netns) -> Result<Metrics> {
    let (status, body) = get(netns, "/metrics")?;
    ensure!(status == 200, "/metrics: {status}");
    Ok(Metrics::parse(&body))
}
