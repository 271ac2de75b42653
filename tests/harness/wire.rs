//! The wire between the nodes, and an observer on it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::Netns;
use crate::packets::{self, Answer, Flow, Segment};
use crate::tls::begins_with_client_hello;
use crate::wait::eventually;

/// What the kernel holds back for an observer that is not quick enough.
const BUFFER_KIB: u32 = 64 << 10;
/// The same on a whole node's wire, on a machine that runs a cluster beside.
const NODE_BUFFER_KIB: u32 = 256 << 10;

/// A running capture (tcpdump) of all that crosses the wire.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
    said: PathBuf,
}

/// Connections without a ClientHello that a capture may have: those of a daemon that was killed, or
/// to one that was. On the wire they look like an application's that went past the mesh, so each is
/// to be accounted for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerated {
    /// Opened, and ended without a byte in either direction: the daemon that opened them, or was to
    /// take them, died before the ClientHello.
    pub aborted: usize,
    /// SYNs that were refused or not answered: the node at the other end had no daemon.
    pub refused: usize,
}

/// Connections that were opened within a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// With a ClientHello first.
    pub sessions: usize,
    /// As [`Tolerated::aborted`].
    pub aborted: usize,
    /// As [`Tolerated::refused`].
    pub refused: usize,
}

/// What was captured.
#[derive(Debug)]
pub struct Captured {
    /// TCP segments.
    pub segments: Vec<Segment>,
    /// Flows, put together.
    pub flows: Vec<Flow>,
}

impl Capture {
    /// Begins to capture on `interface` of a namespace; returns when packets are being taken.
    ///
    /// # Errors
    /// tcpdump is missing or does not start.
    pub fn start(netns: &Netns, interface: &str, file: PathBuf) -> Result<Self> {
        Self::begin(&netns.path(), interface, file, BUFFER_KIB)
    }

    /// The same in the network namespace of that path, such as a process's in `/proc`.
    ///
    /// # Errors
    /// tcpdump is missing or does not start.
    pub fn inside(netns: &Path, interface: &str, file: PathBuf) -> Result<Self> {
        Self::begin(netns, interface, file, NODE_BUFFER_KIB)
    }

    fn begin(netns: &Path, interface: &str, file: PathBuf, buffer_kib: u32) -> Result<Self> {
        let said = file.with_extension("log");
        let log = std::fs::File::create(&said)?;
        // Without a process namespace to enter, nsenter becomes tcpdump: signals reach it.
        let child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .args(["tcpdump", "-i", interface, "-s", "0", "-B", &buffer_kib.to_string()])
            .args(["--immediate-mode", "-U"])
            .args(["-n", "-Z", "root", "-w"])
            .arg(&file)
            .arg("tcp")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting tcpdump (package tcpdump)")?;
        let capture = Self { child, file, said };
        eventually("tcpdump to listen", Duration::from_secs(10), || {
            Ok(std::fs::read_to_string(&capture.said)?.contains("listening on").then_some(()))
        })?;
        Ok(capture)
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// The kernel dropped packets, so that nothing could be said about what was not seen.
    pub fn stop(mut self) -> Result<Captured> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("no pid")?;
        // Packets that were sent a moment ago are on their way through the observer's socket. It has
        // taken them when it says twice that it has as many as before.
        let mut counts: Vec<String> = Vec::new();
        while counts.iter().rev().take(2).collect::<HashSet<_>>().len() != 1 || counts.len() < 2 {
            ensure!(counts.len() < 100, "packets do not end: {counts:?}");
            std::thread::sleep(Duration::from_millis(50));
            kill_process(pid, Signal::USR1)?;
            let told = eventually("tcpdump to say what it has", Duration::from_secs(20), || {
                let said = std::fs::read_to_string(&self.said)?;
                let told = said.lines().filter_map(|line| line.split_once(" packets captured, "));
                Ok(told.map(|(count, _)| count.to_owned()).nth(counts.len()))
            })?;
            counts.push(told);
        }
        kill_process(pid, Signal::INT)?;
        self.child.wait()?;
        let said = std::fs::read_to_string(&self.said)?;
        let dropped = said
            .lines()
            .filter_map(|l| l.strip_suffix(" packets dropped by kernel"))
            .find_map(|n| n.trim().parse::<u64>().ok())
            .with_context(|| format!("tcpdump said {said}"))?;
        ensure!(dropped == 0, "the observer lost {dropped} packets");
        let (segments, _) = packets::parse(&std::fs::read(&self.file)?)?;
        let flows = packets::flows(&segments);
        Ok(Captured { segments, flows })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Captured {
    /// Nothing with `marker` in it crossed the wire, in any segment or flow.
    ///
    /// # Errors
    /// It did; with the connection.
    pub fn assert_no_plaintext(&self, marker: &str) -> Result<()> {
        let needle = marker.as_bytes();
        let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        for flow in &self.flows {
            if has(&flow.bytes) {
                bail!("{marker:?} in plaintext from {} to {}", flow.source, flow.destination);
            }
        }
        for segment in &self.segments {
            if has(&segment.payload) {
                bail!("{marker:?} in plaintext from {} to {}", segment.source, segment.destination);
            }
        }
        Ok(())
    }

    /// Something with `marker` in it crossed the wire: the control of the assertion above.
    #[must_use]
    pub fn saw_plaintext(&self, marker: &str) -> bool {
        self.assert_no_plaintext(marker).is_err()
    }

    /// Every byte between these addresses was TLS, and every connection that was opened began with a
    /// ClientHello: a SYN without one is a connection that was not captured. How many there were.
    ///
    /// # Errors
    /// Bytes that are no TLS records, or a connection without a ClientHello.
    pub fn assert_all_tls(&self, between: &[IpAddr]) -> Result<usize> {
        self.assert_all_tls_but(between, Tolerated::default()).map(|seen| seen.sessions)
    }

    /// The same where a daemon is killed meanwhile.
    ///
    /// # Errors
    /// As [`Captured::assert_all_tls`], or more of what is tolerated than is.
    pub fn assert_all_tls_but(&self, between: &[IpAddr], tolerated: Tolerated) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut aborted = Vec::new();
        let mut refused = Vec::new();
        for flow in self.between(between) {
            let ends = || format!("from {} to {}", flow.source, flow.destination);
            if !crate::tls::is_tls(&flow.bytes) {
                let start = &flow.bytes[..flow.bytes.len().min(64)];
                bail!("not TLS {}: {:?}", ends(), String::from_utf8_lossy(start));
            }
            match (flow.opened, flow.answer) {
                (false, _) => {}
                (true, _) if begins_with_client_hello(&flow.bytes) => seen.sessions += 1,
                (true, _) if !flow.bytes.is_empty() => bail!("no ClientHello {}", ends()),
                (true, Answer::Accepted) => {
                    ensure!(flow.ended, "opened without a word and left open: {}", ends());
                    ensure!(!flow.heard, "answered without a ClientHello {}", ends());
                    aborted.push(ends());
                }
                (true, Answer::Refused | Answer::None) => refused.push(ends()),
            }
        }
        (seen.aborted, seen.refused) = (aborted.len(), refused.len());
        ensure!(
            seen.aborted <= tolerated.aborted,
            "{} connections without a ClientHello, {} are to be expected: {aborted:?}",
            seen.aborted,
            tolerated.aborted
        );
        ensure!(
            seen.refused <= tolerated.refused,
            "{} SYNs that nobody took, {} are to be expected: {refused:?}",
            seen.refused,
            tolerated.refused
        );
        Ok(seen)
    }

    /// Leaves out connections that were there before: they are seen from somewhere in the middle of
    /// a record. What gets past the mesh is a new one.
    pub fn only_new(&mut self) {
        let ends = |flow: &Flow| (flow.source, flow.destination);
        let opened: HashSet<_> = self.flows.iter().filter(|flow| flow.opened).map(ends).collect();
        self.flows.retain(|flow| {
            let (source, destination) = ends(flow);
            opened.contains(&(source, destination)) || opened.contains(&(destination, source))
        });
    }

    /// Flows both of whose ends are among these addresses.
    pub fn between<'a>(&'a self, ends: &'a [IpAddr]) -> impl Iterator<Item = &'a Flow> {
        self.flows
            .iter()
            .filter(move |f| ends.contains(&f.source.ip()) && ends.contains(&f.destination.ip()))
    }

    /// Payload bytes between these addresses, both directions.
    #[must_use]
    pub fn payload_bytes(&self, ends: &[IpAddr]) -> usize {
        self.between(ends).map(|f| f.bytes.len()).sum()
    }
}
