//! `cargo xtask images`: container images of the workspace's programs, without a Docker daemon.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fairlead_cluster::package::{self, Packaged, REGISTRY, VERSION};
use fairlead_cluster::{Cluster, system};

use crate::workspace::{self, cargo, profile_dir, step};
use crate::{ebpf, tools};

/// Package, program and image of what is shipped or tested.
const PROGRAMS: &[(&str, &str)] = &[
    ("fairlead-node", "fairlead-node"),
    ("fairlead-controller", "fairlead-controller"),
    ("fairlead-cni", "fairlead-cni"),
    ("fairlead-cli", "fairlead"),
    ("fairlead-apps", "fairlead-apps"),
];

/// The profile whose programs are static: it is what ships.
const SHIPPED: &str = "dist";

/// Builds the workspace's programs and packages each as an image of one layer: archives as of
/// `docker save`, below target/images/PROFILE. The same programs give the same bytes; what did not change
/// is not written again.
///
/// Programs of the profile `dist` are linked statically. Those of the others are what cargo builds
/// for the tests, and their images hold the few shared libraries that they need.
///
/// Examples:
///   cargo xtask images
///   cargo xtask images --profile dist
///   cargo xtask images fairlead-node --load
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Only these: fairlead-node, fairlead-controller, fairlead-cni, fairlead, fairlead-apps
    programs: Vec<String>,
    /// Profile of the programs
    #[arg(long, default_value = "dev", value_parser = ["dev", "release", "dist"])]
    profile: String,
    /// Registry in the images' names
    #[arg(long, default_value = REGISTRY)]
    registry: String,
    /// Tag in the images' names
    #[arg(long, default_value = VERSION)]
    tag: String,
    /// Imports them into all nodes of a cluster, too
    #[arg(long, value_name = "CLUSTER", num_args = 0..=1, default_missing_value = "fairlead")]
    load: Option<String>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = wanted(&args.programs)?;
    let dir = build(&wanted, &args.profile)?;
    let to = workspace::target_dir().join("images").join(&args.profile);
    let mut all = Vec::new();
    for (_, program) in &wanted {
        let name = package::image_name(program, &args.registry, &args.tag);
        let archive = to.join(format!("{program}.tar"));
        let packaged = package::package(&dir.join(program), &name, &archive)?;
        println!("{}", line(&packaged));
        all.push(packaged);
    }
    if let Some(cluster) = &args.load {
        tools::require_root("images --load")?;
        let start = Instant::now();
        let cluster = Cluster::open(cluster)?;
        all.iter().try_for_each(|packaged| cluster.load_image(&packaged.archive))?;
        let (name, seconds) = (&cluster.record().name, start.elapsed().as_secs_f64());
        println!("in all nodes of cluster {name}, {seconds:.1} s");
    }
    Ok(())
}

fn line(packaged: &Packaged) -> String {
    let kind = match packaged.libraries {
        0 => "static".to_owned(),
        count => format!("{count} libraries"),
    };
    let mib = packaged.size as f64 / f64::from(1 << 20);
    let same = if packaged.cached { ", unchanged" } else { "" };
    format!("{}: {mib:.1} MiB, {kind}{same}: {}", packaged.name, packaged.archive.display())
}

fn wanted(named: &[String]) -> Result<Vec<(&'static str, &'static str)>> {
    for name in named {
        if !PROGRAMS.iter().any(|(_, program)| program == name) {
            let all: Vec<&str> = PROGRAMS.iter().map(|(_, program)| *program).collect();
            bail!("there is no image {name}; there are {}", all.join(", "));
        }
    }
    let asked = |program: &str| named.is_empty() || named.iter().any(|name| name == program);
    Ok(PROGRAMS.iter().copied().filter(|(_, program)| asked(program)).collect())
}

/// Builds the programs; where they are then.
fn build(wanted: &[(&str, &str)], profile: &str) -> Result<PathBuf> {
    if wanted.iter().any(|(package, _)| *package == "fairlead-node") {
        ebpf::ensure_built()?;
    }
    let mut command = cargo(&["build", "--quiet", "--profile", profile]);
    // All are named, so that dependencies have the same features whichever is wanted, and are built once.
    for (package, _) in PROGRAMS {
        command.args(["-p", package]);
    }
    for (_, program) in wanted {
        command.args(["--bin", program]);
    }
    let mut dir = profile_dir(profile);
    if profile == SHIPPED {
        let triple = host_triple()?;
        // With a target told, the flags do not reach build scripts and macros.
        command.args(["--target", &triple]).env("RUSTFLAGS", "-C target-feature=+crt-static");
        dir = workspace::target_dir().join(triple).join(profile);
    }
    step(&format!("building {} programs, profile {profile}", wanted.len()), &mut command)?;
    for (_, program) in wanted {
        let path = dir.join(program);
        ensure!(Path::new(&path).is_file(), "{} was not built", path.display());
    }
    Ok(dir)
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = system::output(Command::new(rustc).arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exists_can_be_asked_for() -> Result<()> {
        assert_eq!(wanted(&[])?.len(), PROGRAMS.len());
        assert_eq!(wanted(&["fairlead".to_owned()])?, [("fairlead-cli", "fairlead")]);
        assert!(wanted(&["fairlead-nod".to_owned()]).is_err());
        Ok(())
    }
}
