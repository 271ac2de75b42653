//! What was measured, as tables.

use std::time::Duration;

use anyhow::Result;

use crate::changes::Outcome;
use crate::legs::quantile;
use crate::metrics::Metrics;
use crate::node::Nodes;
use crate::process::{Controller, Usage};
use crate::real::RealNode;

/// From a change in the controller to the acknowledgement of a node.
const CONVERGENCE: &str = "pilot_proxy_convergence_time";
/// From a change in the controller to the Update that brings it.
const QUEUE: &str = "pilot_proxy_queue_time";

/// Where everything stands before or after a phase.
pub(crate) struct Stand {
    bytes: u64,
    slices: u64,
    controller: Usage,
    said: Metrics,
    node: Option<(Usage, Metrics)>,
}

impl Stand {
    pub(crate) async fn take(
        controller: &Controller,
        nodes: &Nodes,
        real: Option<&RealNode>,
    ) -> Result<Self> {
        Ok(Self {
            bytes: nodes.bytes(),
            slices: nodes.slices(),
            controller: controller.usage()?,
            said: controller.metrics().await?,
            node: match real {
                Some(real) => Some((real.usage()?, real.metrics().await?)),
                None => None,
            },
        })
    }
}

/// A phase of changes.
pub(crate) struct Phase {
    pub(crate) asked: u32,
    pub(crate) before: Stand,
    pub(crate) after: Stand,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
    /// From the controller's event to its being in force on the real node, as that says itself,
    /// looked at now and then; in microseconds.
    pub(crate) in_force: Vec<u64>,
}

impl Phase {
    /// Prints all that there is to say.
    pub(crate) fn print(&mut self) {
        let Self { asked, before, after, took, outcome, in_force } = self;
        let made = outcome.made as f64;
        println!(
            "\n{asked} changes/s asked, {:.0} made; milliseconds:\n",
            made / outcome.writing.as_secs_f64()
        );
        println!("| | p50 | p99 | most |\n|---|---|---|---|");
        let legs = &mut outcome.legs;
        row("write → API server's answer", &mut legs.answer);
        let [neighbour, behind] = &mut legs.neighbour;
        row("write → another watch has it", neighbour);
        row("write → controller has it", &mut legs.event);
        row("answer → another watch has it", behind);
        row("answer → controller has it", &mut legs.behind);
        row("controller has it → node has it", &mut legs.node);
        row("write → node has it", &mut legs.all);
        for (what, name) in [
            ("controller has it → Update goes out (its own count)", QUEUE),
            ("controller has it → acknowledged (its own count)", CONVERGENCE),
        ] {
            let at = |part| after.said.quantile(&before.said, name, part);
            println!("| {what} | {:.1} | {:.1} | |", at(0.5), at(0.99));
        }
        row("controller has it → in force on the real node", in_force);
        let slices = after.slices - before.slices;
        let name = format!("{CONVERGENCE}_count");
        let updates = after.said.sum(&name) - before.said.sum(&name);
        println!(
            "\nnodes told per change: {:.1}, {:.0} bytes each; Updates: {updates:.0}",
            slices as f64 / made,
            (after.bytes - before.bytes) as f64 / slices.max(1) as f64,
        );
        let percent = |before: &Usage, after: &Usage| {
            (after.cpu_seconds - before.cpu_seconds) / took.as_secs_f64() * 100.0
        };
        println!(
            "controller: {:.0} % of a core, {} MB",
            percent(&before.controller, &after.controller),
            after.controller.resident >> 20
        );
        if let (Some((before, _)), Some((after, said))) = (&before.node, &after.node) {
            println!(
                "node daemon: {:.1} % of a core; {}",
                percent(before, after),
                memory(after, Some(said))
            );
        }
    }
}

fn row(what: &str, times: &mut [u64]) {
    if times.is_empty() {
        println!("| {what} | – | – | – |");
        return;
    }
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| quantile(times, part));
    println!("| {what} | {p50:.1} | {p99:.1} | {most:.1} |");
}

/// The memory of a process, and how many objects it holds if it says so.
fn memory(usage: &Usage, said: Option<&Metrics>) -> String {
    let mega = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let objects = said.map_or(String::new(), |said| {
        format!(", {:.0} objects in force", said.sum("fairlead_config_objects"))
    });
    format!(
        "{:.1} MB resident ({:.1} without files' pages), {:.1} at most{objects}",
        mega(usage.resident),
        mega(usage.anonymous),
        mega(usage.peak)
    )
}

/// Says where the real node stands.
pub(crate) async fn tell_node(what: &str, real: &RealNode) -> Result<()> {
    let (usage, said) = (real.usage()?, real.metrics().await?);
    println!(
        "node daemon, {what}: {}, {:.2} CPU-s so far",
        memory(&usage, Some(&said)),
        usage.cpu_seconds
    );
    Ok(())
}
