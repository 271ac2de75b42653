//! The control plane at scale: a real API server, thousands of services, a thousand simulated
//! nodes over the real protocol. `cargo xtask bench control` builds everything and runs this.
//!
//! Everything runs on this machine, so the API server, etcd and the simulated nodes share its
//! processors with the controller that is measured.
#![forbid(unsafe_code)]

mod api;
mod changes;
mod node;
mod process;
mod setup;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// How large, and for how long.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The controller's binary.
    #[arg(long, env = "FAIRLEAD_BENCH_CONTROLLER")]
    controller: PathBuf,
    /// Directory of the CRDs.
    #[arg(long, default_value = "manifests/crds")]
    crds: PathBuf,
    /// Services, each with one EndpointSlice.
    #[arg(long, default_value_t = 5000)]
    services: usize,
    /// Endpoints of each service.
    #[arg(long, default_value_t = 20)]
    endpoints: usize,
    /// Namespaces that the services are in.
    #[arg(long, default_value_t = 100)]
    namespaces: usize,
    /// Nodes, each with a stream.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Namespaces that each node has an enrolled pod of; these pods reach their own namespace.
    #[arg(long, default_value_t = 2)]
    pods: usize,
    /// Changes per second, one phase each.
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    rates: Vec<u32>,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let tell = |what: &str| eprintln!("[{:>4} s] {what}", begin.elapsed().as_secs());
    tell("starting etcd and the API server");
    let api = api::Api::start(&tell).await?;
    api.apply_crds(&arguments.crds)?;
    tell("making the objects");
    setup::make(&api, arguments).await?;

    tell("starting the controller");
    let controller = process::Controller::start(&arguments.controller, &api)?;
    let started = Instant::now();
    controller.ready(Duration::from_secs(120)).await?;
    let listed = started.elapsed();
    let idle = controller.usage()?;
    println!("{}", machine()?);
    println!(
        "objects: {} services, {} endpoints, {} nodes, {} pods",
        arguments.services,
        arguments.services * arguments.endpoints,
        arguments.nodes,
        arguments.nodes * (arguments.pods + 1)
    );
    println!(
        "controller ready after {:.1} s, {:.1} CPU-s, {} MB resident",
        listed.as_secs_f64(),
        idle.cpu_seconds,
        idle.resident >> 20
    );

    tell("connecting the nodes");
    let roots = setup::roots(&api).await?;
    let tokens = setup::tokens(&api, arguments.nodes).await?;
    let ledger = Arc::new(changes::Ledger::new(arguments.services));
    let before = controller.usage()?;
    let connecting = Instant::now();
    let nodes = node::connect(controller.grpc(), roots, tokens, &ledger).await?;
    let synced = connecting.elapsed();
    let after = controller.usage()?;
    println!(
        "initial sync of {} nodes: {:.1} s, {:.1} MB in all, {:.1} controller CPU-s, {} MB resident",
        arguments.nodes,
        synced.as_secs_f64(),
        mega(nodes.bytes()),
        after.cpu_seconds - before.cpu_seconds,
        after.resident >> 20
    );
    let interested = nodes.interested();
    println!("a service is needed by {interested:.1} nodes on average");

    println!(
        "| changes/s asked | made | p50 ms | p99 ms | max ms | from the API's answer: p50 | p99 | \
         from the controller's event: mean | within 200 ms | nodes told per change | bytes per change and node | controller CPU | resident MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for rate in &arguments.rates {
        tell(&format!("{rate} changes/s for {} s", arguments.seconds));
        let (bytes, updates) = (nodes.bytes(), nodes.slices());
        let own = controller.convergence().await?;
        let before = controller.usage()?;
        let begun = Instant::now();
        let outcome =
            changes::run(&api, arguments, *rate, &ledger, &nodes).await.context("changing")?;
        let took = begun.elapsed().as_secs_f64();
        let after = controller.usage()?;
        let (bytes, updates) = (nodes.bytes() - bytes, nodes.slices() - updates);
        ensure!(outcome.made > 0, "no change was made");
        let [seconds, count, quick] = controller.convergence().await?;
        let count = (count - own[1]).max(1.0);
        let own = [(seconds - own[0]) / count * 1e3, (quick - own[2]) / count * 100.0];
        println!(
            "| {rate} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} % | {:.1} | {:.0} \
             | {:.0} % | {} |",
            outcome.made as f64 / outcome.writing.as_secs_f64(),
            outcome.from_write.at(0.5),
            outcome.from_write.at(0.99),
            outcome.from_write.at(1.0),
            outcome.from_answer.at(0.5),
            outcome.from_answer.at(0.99),
            own[0],
            own[1],
            updates as f64 / outcome.made as f64,
            bytes as f64 / updates.max(1) as f64,
            (after.cpu_seconds - before.cpu_seconds) / took * 100.0,
            after.resident >> 20
        );
    }
    let total = controller.usage()?;
    println!("controller: {} MB at most", total.peak >> 20);
    tell("done");
    Ok(())
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!("Linux {}, {cores} cores", kernel.trim().split('-').next().unwrap_or_default()))
}
