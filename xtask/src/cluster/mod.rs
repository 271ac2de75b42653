//! `cargo xtask cluster`: real Kubernetes clusters on this machine, for people.

mod show;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use fairlead_cluster::binaries::Binaries;
use fairlead_cluster::{Cluster, Component, Options, Status, cluster, state, system};

use crate::{tools, workspace};

/// Name of the cluster that is meant when none is said.
const USUAL: &str = "fairlead";

/// Starts and stops real Kubernetes clusters on this machine: unmodified upstream components in
/// namespaces, no Docker, no images from anywhere. Several can stand side by side.
///
/// Examples:
///   cargo xtask cluster up
///   cargo xtask cluster up --name other --nodes 3 --dual-stack
///   cargo xtask cluster kubectl get pods -A
///   cargo xtask cluster load-image target/images/dev/fairlead-node.tar
///   cargo xtask cluster logs kubelet --node 2
///   cargo xtask cluster down
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    act: Act,
}

/// Which cluster.
#[derive(clap::Args)]
struct Name {
    /// Name of the cluster
    #[arg(long, default_value = USUAL, env = "FAIRLEAD_CLUSTER")]
    name: String,
}

#[derive(Subcommand)]
enum Act {
    /// Makes a cluster and waits until its nodes are ready
    Up {
        #[command(flatten)]
        name: Name,
        /// How many nodes
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// IPv6 beside IPv4
        #[arg(long)]
        dual_stack: bool,
        /// Mode of kube-proxy
        #[arg(long, default_value = "nftables", value_parser = ["nftables", "iptables"])]
        proxy_mode: String,
    },
    /// Shows how clusters are
    Status {
        /// Only this one
        #[arg(long, env = "FAIRLEAD_CLUSTER")]
        name: Option<String>,
        /// Form of the answer
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Runs kubectl on a cluster
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Prints what a component printed: etcd, kube-apiserver, kubelet…
    Logs {
        #[command(flatten)]
        name: Name,
        /// Name of its program, with or without `kube-`
        component: String,
        /// The node, for a component that each node has
        #[arg(long, default_value_t = 1)]
        node: usize,
        /// Goes on with what is printed from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// Imports images (archives as of `docker save`) into all nodes
    LoadImage {
        #[command(flatten)]
        name: Name,
        /// The archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Runs a command inside a node, as root there
    Exec {
        #[command(flatten)]
        name: Name,
        /// The node
        #[arg(long, default_value_t = 1)]
        node: usize,
        /// The command, a shell if there is none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Kills a component, starts one that does not run, or both
    Restart {
        #[command(flatten)]
        name: Name,
        /// Name of its program, with or without `kube-`
        component: String,
        /// The node, for a component that each node has
        #[arg(long, default_value_t = 1)]
        node: usize,
    },
    /// Ends a cluster and removes all that it had, also what a crash left of it
    Down {
        #[command(flatten)]
        name: Name,
        /// All clusters of this machine
        #[arg(long)]
        all: bool,
    },
}

/// Installs what a cluster needs where that is possible, and says so.
pub(crate) fn require_tools() -> Result<()> {
    tools::require_root("cluster")?;
    tools::require_packages(&system::missing_packages())
}

/// Builds the programs of clusters, unless they are there.
pub(crate) fn require_programs() -> Result<()> {
    Binaries::ensure(&|what| workspace::heading(what)).map(drop)
}

/// Runs the task.
pub(crate) fn run(args: Args) -> Result<()> {
    match args.act {
        Act::Up { name, nodes, dual_stack, proxy_mode } => {
            up(&Options { nodes, dual_stack, proxy_mode, ..Options::new(&name.name) })
        }
        Act::Status { name, output } => status(name, &output),
        Act::Kubectl { name, args } => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            pass(&mut Cluster::open(&name.name)?.kubectl().command(&args))
        }
        Act::Logs { name, component, node, follow } => {
            let cluster = Cluster::open(&name.name)?;
            let log = cluster.log(named(&component, node)?);
            let mut tail = Command::new("tail");
            pass(tail.args(["-n", "+1"]).args(follow.then_some("-F")).arg(log))
        }
        Act::LoadImage { name, files } => {
            let cluster = Cluster::open(&name.name)?;
            for file in files {
                let start = Instant::now();
                cluster.load_image(&file)?;
                println!(
                    "{}: in all nodes, {:.1} s",
                    file.display(),
                    start.elapsed().as_secs_f64()
                );
            }
            Ok(())
        }
        Act::Exec { name, node, command } => {
            let cluster = Cluster::open(&name.name)?;
            let mut inside = cluster.node_command(node)?;
            let shell = vec!["/bin/sh".to_owned()];
            inside.args(if command.is_empty() { shell } else { command });
            pass(inside.stdin(std::process::Stdio::inherit()))
        }
        Act::Restart { name, component, node } => {
            let cluster = Cluster::open(&name.name)?;
            let component = named(&component, node)?;
            if !cluster.pids(component)?.is_empty() {
                cluster.kill(component)?;
                println!("killed {component}");
            }
            cluster.start(component)?;
            println!("started {component}");
            Ok(())
        }
        Act::Down { name, all } => down(&name.name, all),
    }
}

fn named(component: &str, node: usize) -> Result<Component> {
    Component::named(component, node).with_context(|| {
        let all: Vec<&str> = Component::all(1).into_iter().map(Component::program).collect();
        format!("there is no component {component}; there are {}", all.join(", "))
    })
}

/// Runs a command in our place: its failure is ours.
fn pass(command: &mut Command) -> Result<()> {
    let status: ExitStatus = command.status()?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn up(options: &Options) -> Result<()> {
    require_tools()?;
    let start = Instant::now();
    let last = Cell::new(start);
    let say = |what: &str| {
        last.set(Instant::now());
        workspace::heading(&format!("[{:5.1} s] {what}", start.elapsed().as_secs_f64()));
    };
    let cluster = Cluster::up(options, &say)?;
    let seconds = start.elapsed().as_secs_f64();
    let (option, load) = match options.name.as_str() {
        USUAL => (String::new(), String::new()),
        name => (format!(" --name {name}"), format!(" {name}")),
    };
    println!(
        "cluster {} is ready after {seconds:.1} s\n\n  \
         export KUBECONFIG={}\n\n\
         next:\n  \
         cargo xtask cluster kubectl{option} get nodes,pods -A -o wide\n  \
         cargo xtask cluster status{option}\n  \
         cargo xtask images --load{load}\n  \
         cargo xtask cluster down{option}",
        options.name,
        cluster.kubeconfig().display(),
    );
    Ok(())
}

fn status(name: Option<String>, output: &str) -> Result<()> {
    tools::require_root("cluster status")?;
    let names = name.map_or_else(state::list, |name| Ok(vec![name]))?;
    let mut all = Vec::new();
    for name in names {
        match Cluster::open(&name) {
            Ok(cluster) => all.push(Status::of(&cluster)?),
            Err(error) => eprintln!("{name}: {error:#}"),
        }
    }
    if output == "json" {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if all.is_empty() {
        println!("no cluster; `cargo xtask cluster up` makes one");
    } else {
        all.iter().for_each(|status| print!("{}", show::table(status)));
    }
    if all.iter().any(|status| !status.healthy()) {
        bail!("not everything runs");
    }
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    tools::require_root("cluster down")?;
    let start = Instant::now();
    let removed = if all {
        cluster::clean(true)?
    } else {
        ensure!(Cluster::down(name)?, "there is no cluster {name}");
        vec![name.to_owned()]
    };
    for name in &removed {
        println!("cluster {name} is gone");
    }
    eprintln!("   done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
