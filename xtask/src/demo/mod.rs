//! `cargo xtask demo`: what Fairlead does, told step by step with measured results.

mod capture;
mod kubernetes;
mod story;
mod traffic;
mod trouble;
mod trust;
mod world;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use fairlead_tests::{daemon, process};

use self::story::Story;
use self::world::World;
use crate::{test, tools};

/// Starts two nodes and a Bookinfo-like application, then tells its story step by step: capture,
/// encryption, routing, policy, rotation, mistakes and crashes, each with measured results. It
/// fails when a step does not see what it promises, and removes everything at its end.
///
/// Examples:
///   cargo xtask demo
///   cargo xtask demo --step canary
///   cargo xtask demo --keep
///   cargo xtask demo --list
///   cargo xtask demo --kubernetes
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Leave it running at the end, with things to try (`cargo xtask clean` removes it)
    #[arg(long)]
    keep: bool,
    /// Only this step, after what it needs
    #[arg(long, value_name = "NAME")]
    step: Option<String>,
    /// Profile of the daemon
    #[arg(long, default_value = "release")]
    profile: String,
    /// Print the names of the steps
    #[arg(long)]
    list: bool,
    /// The story on a real cluster, with kubectl and the manifests that users get
    #[arg(long, conflicts_with_all = ["step", "list"])]
    kubernetes: bool,
}

type Tell = fn(&mut World, &mut Story) -> Result<()>;

struct Step {
    name: &'static str,
    title: &'static str,
    /// Whether the namespace has to be in the mesh already.
    joined: bool,
    tell: Tell,
}

const STEPS: &[Step] = &[
    Step {
        name: "before",
        title: "An application without a mesh",
        joined: false,
        tell: capture::before,
    },
    Step { name: "join", title: "The namespace gets a label", joined: false, tell: capture::join },
    Step { name: "wire", title: "What the wire shows now", joined: true, tell: capture::wire },
    Step {
        name: "strict",
        title: "STRICT: who is not in the mesh stays out",
        joined: true,
        tell: capture::strict,
    },
    Step {
        name: "canary",
        title: "A canary: 80/20, by header, then everybody",
        joined: true,
        tell: traffic::canary,
    },
    Step {
        name: "faults",
        title: "A delay and an abort, on purpose",
        joined: true,
        tell: traffic::faults,
    },
    Step { name: "retries", title: "A timeout and a retry", joined: true, tell: traffic::retries },
    Step { name: "denied", title: "A caller denied, and why", joined: true, tell: trust::denied },
    Step {
        name: "certificates",
        title: "Certificates rotate under load",
        joined: true,
        tell: trust::certificates,
    },
    Step { name: "broken", title: "A broken YAML", joined: true, tell: trouble::broken },
    Step {
        name: "killed",
        title: "The daemon is killed, and comes back",
        joined: true,
        tell: trouble::killed,
    },
];

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for step in STEPS {
            println!("{:<14} {}", step.name, step.title);
        }
        return Ok(());
    }
    if args.kubernetes {
        return kubernetes::run(&args.profile, args.keep);
    }
    let wanted: Vec<&Step> = match &args.step {
        None => STEPS.iter().collect(),
        Some(name) => STEPS.iter().filter(|s| s.name == name).collect(),
    };
    if wanted.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|s| s.name).collect();
        bail!("no step {:?}; there are {}", args.step.as_deref().unwrap_or(""), names.join(", "));
    }
    tools::require_root("the demo")?;
    tools::require(tools::NETWORK)?;
    tools::require(tools::NETFILTER)?;
    test::build_only(&args.profile, test::STANDALONE)?;
    let bin = crate::workspace::profile_dir(&args.profile);
    process::use_binaries_of(&bin);
    let _sweeper = Sweeper::start()?;
    let mut world = World::build().context("building the world of the demo")?;
    let mut story = Story::new();
    println!(
        "\nTwo nodes on a wire, a node daemon on each; productpage and reviews v1 on node0, details, \
         reviews v2 and v3,\nratings and their database on node1. A visitor sends the requests."
    );
    let told = tell(&wanted, &mut world, &mut story);
    match (&told, args.keep) {
        (_, true) => keep(world, &bin),
        (Ok(()), false) => {}
        (Err(_), false) => {
            for node in 0..2 {
                let log = world.mesh.output(node);
                eprintln!("\nlast lines of the daemon of node{node}:\n{}", daemon::tail(&log));
            }
        }
    }
    told?;
    println!("\n{} promises kept in {:.0} s.", story.seen, story.seconds());
    Ok(())
}

fn tell(steps: &[&Step], world: &mut World, story: &mut Story) -> Result<()> {
    for step in steps {
        if step.joined {
            world.join()?;
        }
        story.chapter(step.title);
        (step.tell)(world, story).with_context(|| format!("step {}", step.name))?;
    }
    Ok(())
}

fn keep(mut world: World, bin: &Path) {
    let id = world.mesh.id().to_owned();
    world.mesh.keep();
    let config = world.mesh.node(0).config();
    let apps = bin.join("fairlead-apps");
    println!(
        "\nIt is still running. Things to try:
  a request      FAIRLEAD_APPS_HOSTS={dir}/hosts sh -c 'echo $$ > {cgroup}/cgroup.procs; \\
                   exec ip netns exec {id}-bookinfo-visitor {apps} get http://productpage:9080/productpage'
  metrics        ip netns exec {id}-node0 curl -s localhost:15000/metrics | grep istio_requests_total
  access log     tail -f {log}
  the wire       ip netns exec {id}-wire tcpdump -ni br0 -A
  configuration  put YAML into {config} (and node1's); it is read at once
  an end         cargo xtask clean",
        dir = world.mesh.dir().display(),
        cgroup = world.visitor.cgroup().display(),
        apps = apps.display(),
        log = world.mesh.node(0).access_log().display(),
        config = config.display(),
    );
    world.processes.into_iter().for_each(std::mem::forget);
    drop((world.mesh, world.pods, world.visitor, world.outsider));
}

/// A helper process that cleans up when this one ends in any way, Ctrl-C and SIGKILL included: it
/// waits for the end of its standard input.
struct Sweeper(Child);

impl Sweeper {
    fn start() -> Result<Self> {
        let mut sweeper = Command::new("/bin/sh");
        sweeper.args([
            "-c",
            "trap '' INT TERM HUP; cat > /dev/null; exec \"$0\" clean --dead --quiet",
        ]);
        let exe = std::env::current_exe()?;
        Ok(Self(sweeper.arg(exe).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}
