//! Reproducible comparisons: direct traffic, Fairlead, and Envoy as an Istio-like pair, in one
//! interleaved run. `cargo xtask bench` builds everything in release and runs this.
#![forbid(unsafe_code)]

mod envoy;
mod histogram;
mod load;
mod report;
mod run;
mod serve;
mod usage;
mod variants;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Benchmarks of Fairlead.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo xtask bench                         everything, about ten minutes
  fairlead-bench serve                      the servers alone
  fairlead-bench load 127.0.0.1:9000 --talk echo --connections 16 --seconds 5"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare all variants; needs root and the release binaries beside this one.
    Run(RunArguments),
    /// Serve HTTP, echo and sink until ended.
    Serve,
    /// Offer one load and print what came of it as JSON.
    Load(LoadArguments),
    /// Hold idle connections open until standard input closes.
    Hold {
        /// An echo server.
        target: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    /// How often each cell is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections held for the memory figure.
    #[arg(long, default_value_t = 1000)]
    held: usize,
    /// Leave out the runs with each node pinned to a core.
    #[arg(long)]
    no_pinned: bool,
    /// Write every sample as JSON here.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct LoadArguments {
    /// The server.
    target: SocketAddr,
    /// What a connection says.
    #[arg(long, value_enum, default_value = "echo")]
    talk: load::Talk,
    /// Host header for HTTP.
    #[arg(long, default_value = "bench")]
    authority: String,
    /// Connections at once.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// A fixed rate in requests per second over all connections, instead of as fast as answers come.
    #[arg(long, conflicts_with_all = ["new_connections", "bulk"])]
    rate: Option<u32>,
    /// A new connection for each request.
    #[arg(long, conflicts_with = "bulk")]
    new_connections: bool,
    /// As many bytes as go, one way (to the sink port).
    #[arg(long)]
    bulk: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.command {
        Command::Run(arguments) => compare(&arguments),
        Command::Serve => runtime.block_on(serve::run()),
        Command::Load(arguments) => {
            let load = load::Load {
                target: arguments.target,
                authority: arguments.authority,
                talk: arguments.talk,
                shape: match (arguments.rate, arguments.new_connections, arguments.bulk) {
                    (Some(rate), _, _) => load::Shape::Rate(rate),
                    (None, true, _) => load::Shape::Connect,
                    (None, _, true) => load::Shape::Bulk,
                    _ => load::Shape::Closed,
                },
                connections: arguments.connections,
                duration: Duration::from_secs_f64(arguments.seconds),
            };
            let outcome = runtime.block_on(load::run(load))?;
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(())
        }
        Command::Hold { target, connections } => runtime.block_on(load::hold(target, connections)),
    }
}

/// The whole comparison.
fn compare(arguments: &RunArguments) -> Result<()> {
    let own = std::env::current_exe()?;
    let effort =
        run::Effort { rounds: arguments.rounds, seconds: arguments.seconds, held: arguments.held };
    let begin = Instant::now();
    let tell = |what: &str| eprintln!("[{:>4} s] {what}", begin.elapsed().as_secs());
    let envoy = variants::envoy_binary();
    if envoy.is_none() {
        tell("no Envoy (FAIRLEAD_BENCH_ENVOY names none): left out");
    }
    tell("building nodes, pods and proxies");
    let stand = variants::Stand::build(&own, envoy.as_deref())?;
    let memory = run::memory(&stand, &own, effort.held).inspect_err(|_| stand.tell_logs())?;
    tell("memory");
    let mut samples = run::measure(&stand, &own, effort, false, &tell)?;
    if !arguments.no_pinned {
        tell("again, with each node pinned to a core");
        samples.extend(run::measure(&stand, &own, effort, true, &tell)?);
    }
    let report = report::Report {
        machine: machine()?,
        version: env!("CARGO_PKG_VERSION"),
        cells: run::cells(effort),
        samples,
        memory,
    };
    let baselines: BTreeMap<&str, &str> =
        stand.variants.iter().map(|v| (v.name, v.baseline)).collect();
    let order: Vec<&str> = stand.variants.iter().map(|v| v.name).collect();
    println!("{}\n{}", report.machine, report.table(&baselines, &order));
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", file.display()))?;
        tell(&format!("every sample is in {}", file.display()));
    }
    Ok(())
}

/// Kernel and processors, as far as a reader of the figures wants to know.
fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    let release: String = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    Ok(format!("Linux {release}, {cores} cores"))
}
