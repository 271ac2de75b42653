//! One run: every cell of (load, variant) measured in turn, round after round, so that a machine
//! whose speed drifts hits all variants alike.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::load::{Outcome, Talk};
use crate::variants::{Stand, Variant};
use crate::{serve, usage};

/// A load that every variant gets.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) name: String,
    /// What the figure of this cell means.
    pub(crate) unit: &'static str,
    #[serde(skip)]
    port: u16,
    #[serde(skip)]
    arguments: Vec<String>,
}

/// What a cell showed for one variant in one round.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) cell: String,
    pub(crate) variant: &'static str,
    pub(crate) pinned: bool,
    pub(crate) round: usize,
    pub(crate) outcome: Outcome,
    /// CPU seconds of the processes in between.
    pub(crate) proxy_cpu: f64,
    /// CPU seconds of the whole machine.
    pub(crate) machine_cpu: f64,
}

/// Memory of a variant's processes in between.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) variant: &'static str,
    pub(crate) at_rest: u64,
    pub(crate) per_connection: f64,
    pub(crate) connections: usize,
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) held: usize,
}

/// All cells.
pub(crate) fn cells(effort: Effort) -> Vec<Cell> {
    let seconds = effort.seconds.to_string();
    let mut cells = Vec::new();
    for (talk, label, port) in [(Talk::Echo, "L4", serve::ECHO), (Talk::Http, "L7", serve::HTTP)] {
        let talk = if talk == Talk::Echo { "echo" } else { "http" };
        let common = |more: &[&str]| -> Vec<String> {
            ["--talk", talk, "--seconds", &seconds]
                .iter()
                .chain(more)
                .map(|s| (*s).to_owned())
                .collect()
        };
        for connections in ["1", "16", "64"] {
            cells.push(Cell {
                name: format!("{label}, {connections} connections"),
                unit: "requests/s",
                port,
                arguments: common(&["--connections", connections]),
            });
        }
        cells.push(Cell {
            name: format!("{label}, 2,000/s over 16"),
            unit: "p99 µs",
            port,
            arguments: common(&["--connections", "16", "--rate", "2000"]),
        });
        cells.push(Cell {
            name: format!("{label}, new connections"),
            unit: "connections/s",
            port,
            arguments: common(&["--connections", "8", "--new-connections"]),
        });
    }
    cells.push(Cell {
        name: "bulk, one connection".to_owned(),
        unit: "MB/s",
        port: serve::SINK,
        arguments: ["--bulk", "--connections", "1", "--seconds", &seconds]
            .map(str::to_owned)
            .into(),
    });
    cells
}

/// Measures every cell of every variant.
pub(crate) fn measure(
    stand: &Stand,
    own: &Path,
    effort: Effort,
    pinned: bool,
    tell: &dyn Fn(&str),
) -> Result<Vec<Sample>> {
    stand.pin(pinned)?;
    let mut samples = Vec::new();
    for round in 0..effort.rounds {
        for cell in cells(effort) {
            for variant in &stand.variants {
                let sample = one(&cell, variant, own, pinned, round)
                    .with_context(|| format!("{} with {}", cell.name, variant.name))?;
                samples.push(sample);
            }
            tell(&format!("round {}: {}", round + 1, cell.name));
        }
    }
    stand.pin(false)?;
    Ok(samples)
}

fn one(cell: &Cell, variant: &Variant, own: &Path, pinned: bool, round: usize) -> Result<Sample> {
    let target = variant.target(cell.port).to_string();
    let own = own.display().to_string();
    let mut words = vec!["-c", if pinned { "0" } else { "0-1" }, own.as_str(), "load", &target];
    words.extend(cell.arguments.iter().map(String::as_str));
    let pids = variant.pids();
    let before = (usage::of(&pids)?, usage::machine()?);
    let printed = variant.client.exec(Path::new("/usr/bin/taskset"), &words)?;
    let after = (usage::of(&pids)?, usage::machine()?);
    let outcome: Outcome =
        serde_json::from_str(printed.trim()).with_context(|| format!("load said {printed:?}"))?;
    Ok(Sample {
        cell: cell.name.clone(),
        variant: variant.name,
        pinned,
        round,
        outcome,
        proxy_cpu: after.0.cpu_seconds - before.0.cpu_seconds,
        machine_cpu: after.1 - before.1,
    })
}

/// Memory of each variant, at rest and with idle connections.
pub(crate) fn memory(stand: &Stand, own: &Path, connections: usize) -> Result<Vec<Memory>> {
    let mut all = Vec::new();
    for variant in stand.variants.iter().filter(|v| !v.pids().is_empty()) {
        let pids = variant.pids();
        let at_rest = usage::of(&pids)?.resident;
        let held = hold(variant, own, connections)?;
        let loaded = usage::of(&pids)?.resident;
        drop(held);
        all.push(Memory {
            variant: variant.name,
            at_rest,
            per_connection: loaded.saturating_sub(at_rest) as f64 / connections as f64,
            connections,
        });
    }
    Ok(all)
}

/// Idle connections, held until dropped.
struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing its input lets it end by itself.
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

fn hold(variant: &Variant, own: &Path, connections: usize) -> Result<Held> {
    let cgroup = variant.client.cgroup().display().to_string();
    let mut child = variant.client.netns.enter(|| {
        Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&cgroup)
            .arg(own)
            .args(["hold", &variant.target(serve::ECHO).to_string()])
            .args(["--connections", &connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the holder")
    })?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let held = Held(child);
    if !line.starts_with("holding") {
        bail!("{} connections could not be held through {}", connections, variant.name);
    }
    std::io::stderr().flush()?;
    Ok(held)
}
