//! The control plane at scale: a real API server, thousands of services, a thousand simulated
//! nodes over the real protocol, and one real one. `cargo xtask bench control` builds everything
//! and runs this.
//!
//! Everything runs on this machine, so the API server, etcd and the simulated nodes share its
//! processors with what is measured.
#![forbid(unsafe_code)]

mod api;
mod changes;
mod client;
mod legs;
mod metrics;
mod neighbour;
mod node;
mod process;
mod real;
mod report;
mod setup;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::{Builder, Handle};

use changes::Ledger;
use node::Nodes;
use process::Controller;
use real::RealNode;
use report::{Phase, Stand, tell_node};

/// Pause between two looks at how long a change takes on the real node.
const LOOK: Duration = Duration::from_millis(250);
/// How many Updates the real node has taken.
const UPDATES: &str = "fairlead_controller_updates_total";
/// How long the controller may take for its first list.
const LIST: Duration = Duration::from_secs(120);

/// How large, and for how long.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The controller's binary.
    #[arg(long, env = "FAIRLEAD_BENCH_CONTROLLER")]
    controller: PathBuf,
    /// The node daemon's binary: one real node beside the simulated ones. Needs root.
    #[arg(long, env = "FAIRLEAD_BENCH_NODE")]
    node: Option<PathBuf>,
    /// Directory of the CRDs.
    #[arg(long, default_value = "manifests/crds")]
    crds: PathBuf,
    /// Services, each with one EndpointSlice.
    #[arg(long, default_value_t = 5000)]
    services: usize,
    /// Endpoints of each service.
    #[arg(long, default_value_t = 20)]
    endpoints: usize,
    /// Have endpoints name pods (which do not exist): the controller keeps an index of them, and
    /// the real node waits for them.
    #[arg(long)]
    pod_references: bool,
    /// Namespaces that the services are in.
    #[arg(long, default_value_t = 100)]
    namespaces: usize,
    /// Nodes, each with a stream.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Namespaces that each node has an enrolled pod of; these pods reach their own namespace.
    #[arg(long, default_value_t = 2)]
    pods: usize,
    /// Pods of the real node.
    #[arg(long, default_value_t = 30)]
    real_pods: usize,
    /// Namespaces that these are of.
    #[arg(long, default_value_t = 10)]
    real_namespaces: usize,
    /// Changes per second, one phase each.
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    rates: Vec<u32>,
    /// Changes per second while the real node sees every service; 0: it never does.
    #[arg(long, default_value_t = 100)]
    wide_rate: u32,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Niceness of etcd and the API server, which elsewhere have a machine of their own.
    #[arg(long, default_value_t = 10)]
    api_nice: u8,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // One thread for all simulated nodes, another for the load.
    let field =
        Builder::new_multi_thread().worker_threads(1).thread_name("nodes").enable_all().build()?;
    let load = Builder::new_current_thread().enable_all().build()?;
    load.block_on(run(&arguments, field.handle()))
}

async fn run(arguments: &Arguments, field: &Handle) -> Result<()> {
    let begin = Instant::now();
    let tell = |what: &str| eprintln!("[{:>4} s] {what}", begin.elapsed().as_secs());
    tell("starting etcd and the API server");
    let api = api::Api::start(arguments.api_nice, &tell).await?;
    api.apply_crds(&arguments.crds)?;
    tell("making the objects");
    setup::make(&api, arguments).await?;

    tell("starting the controller");
    let controller = Controller::start(&arguments.controller, &api)?;
    let started = Instant::now();
    controller.ready(LIST).await?;
    let listed = started.elapsed();
    let idle = controller.usage()?;
    println!("{}, etcd and API server at nice {}", machine()?, arguments.api_nice);
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
    let ledger = Arc::new(Ledger::new(arguments.services));
    let before = controller.usage()?;
    let connecting = Instant::now();
    let nodes = node::connect(field, controller.grpc(), &roots, tokens, &ledger).await?;
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
    println!("a service is needed by {:.1} simulated nodes on average", nodes.interested());

    neighbour::start(api.client.clone(), Arc::clone(&ledger));
    let mut real = match &arguments.node {
        Some(binary) if is_root()? => {
            tell("starting a real node");
            let mut real = RealNode::start(binary, &api, controller.grpc(), &roots).await?;
            tell_node("without pods", &real).await?;
            let namespaces: Vec<String> = (0..arguments.real_namespaces.min(arguments.namespaces))
                .map(setup::namespace)
                .collect();
            real.add_pods(&api, &namespaces, arguments.real_pods).await?;
            let what =
                format!("{} enrolled pods of {} namespaces", arguments.real_pods, namespaces.len());
            tell_node(&what, &real).await?;
            Some(real)
        }
        Some(_) => {
            println!("no real node: it needs root");
            None
        }
        None => None,
    };
    let bench = Bench { api: &api, arguments, controller: &controller, nodes, ledger };
    for rate in &arguments.rates {
        tell(&format!("{rate} changes/s for {} s", arguments.seconds));
        bench.phase(*rate, real.as_ref()).await.context("changing")?.print();
    }
    if let Some(real) = real.as_mut().filter(|_| arguments.wide_rate > 0) {
        tell("the real node gets a pod that reaches every service");
        println!();
        real.add_wide_pod(&api).await?;
        tell_node("every service visible", real).await?;
        tell(&format!("{} changes/s for {} s", arguments.wide_rate, arguments.seconds));
        bench.phase(arguments.wide_rate, Some(real)).await.context("changing")?.print();
    }
    let total = controller.usage()?;
    println!("\ncontroller: {} MB resident, {} at most", total.resident >> 20, total.peak >> 20);
    tell("done");
    Ok(())
}

/// What phases need.
struct Bench<'a> {
    api: &'a api::Api,
    arguments: &'a Arguments,
    controller: &'a Controller,
    nodes: Nodes,
    ledger: Arc<Ledger>,
}

impl Bench<'_> {
    async fn phase(&self, rate: u32, real: Option<&RealNode>) -> Result<Phase> {
        let Self { api, arguments, controller, nodes, ledger } = self;
        let before = Stand::take(controller, nodes, real).await?;
        let begun = Instant::now();
        let (mut in_force, mut known) = (Vec::new(), updates(real).await?);
        let outcome = {
            let changes = changes::run(api, arguments, rate, ledger, nodes);
            tokio::pin!(changes);
            loop {
                tokio::select! {
                    outcome = &mut changes => break outcome?,
                    latency = look(real, &mut known) => in_force.extend(latency?),
                }
            }
        };
        let took = begun.elapsed();
        let after = Stand::take(controller, nodes, real).await?;
        Ok(Phase { asked: rate, before, after, took, outcome, in_force })
    }
}

/// Updates that the real node has taken.
async fn updates(real: Option<&RealNode>) -> Result<f64> {
    let Some(real) = real else { return Ok(0.0) };
    real.metrics().await?.value(UPDATES)
}

/// How long the last change took until it was in force on the real node, in microseconds; nothing
/// if there has been none since the last look.
async fn look(real: Option<&RealNode>, known: &mut f64) -> Result<Option<u64>> {
    tokio::time::sleep(LOOK).await;
    let Some(real) = real else { return Ok(None) };
    let said = real.metrics().await?;
    let before = std::mem::replace(known, said.value(UPDATES)?);
    let seconds = said.value("fairlead_controller_latency_seconds")?;
    Ok((*known > before).then_some((seconds * 1e6) as u64))
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!("Linux {}, {cores} cores", kernel.trim().split('-').next().unwrap_or_default()))
}
