//! Tasks of the repository: `cargo xtask --help`. Each task is a module; nothing happens here.

mod bench;
mod clean;
mod cluster;
mod demo;
mod ebpf;
mod images;
mod lint;
mod manifests;
mod soak;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the Fairlead repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Demo(demo::Args),
    BuildEbpf(ebpf::Args),
    Test(test::Args),
    Bench(bench::Args),
    Lint(lint::Args),
    Manifests(manifests::Args),
    Soak(soak::Args),
    Clean(clean::Args),
    Cluster(cluster::Args),
    Images(images::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Demo(args) => demo::run(&args),
        Task::BuildEbpf(args) => ebpf::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Lint(args) => lint::run(&args),
        Task::Manifests(args) => manifests::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Clean(args) => clean::run(&args),
        Task::Cluster(args) => cluster::run(args),
        Task::Images(args) => images::run(&args),
    }
}
