//! `cargo xtask test`: unit tests, then scenarios with real traffic; one summary.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use fairlead_tests::run::{self, Which};

use crate::workspace::{cargo, heading, note_room, profile_dir, step, target_dir, watch};
use crate::{cluster, ebpf, tools};

/// Builds everything, runs the unit tests, then the scenarios (as root, two side by side), and
/// prints `N passed, N failed`.
///
/// Examples:
///   cargo xtask test
///   cargo xtask test --unit
///   cargo xtask test --filter rotation
///   cargo xtask test --scenarios --profile dev --jobs 1
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Unit tests only; needs no root
    #[arg(long, conflicts_with = "scenarios")]
    unit: bool,
    /// Scenarios only
    #[arg(long)]
    scenarios: bool,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Scenarios side by side
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Profile of the daemon and of the scenarios
    #[arg(long, default_value = "release")]
    profile: String,
}

/// What a run of tests came to.
#[derive(Default)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Their names.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// Reads a line of libtest's output.
    fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let count = |what: &str| -> u64 {
            let words = rest.split([';', '.']).map(str::trim);
            let number = |w: &str| w.strip_suffix(what).and_then(|n| n.trim().parse().ok());
            words.filter_map(number).next().unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
    }
}

/// The scenarios that run a conformance tester, which is built when one of them may be meant.
const CONFORMANCE: &str = "http_conformance::h2spec_finds_nothing_on_either_side";

/// Bytes of disk that a whole run takes when nothing has been built.
const ROOM: u64 = 12_000_000_000;

/// The daemon, the applications and the command: all that a node without Kubernetes needs.
pub(crate) const STANDALONE: &[&str] = &["fairlead-node", "fairlead-cli", "fairlead-apps"];
/// What a cluster needs besides.
const KUBERNETES: &[&str] = &["fairlead-controller", "fairlead-cni"];

/// Builds the programs of the scenarios.
pub(crate) fn build(profile: &str) -> Result<()> {
    build_only(profile, &[STANDALONE, KUBERNETES].concat())
}

/// Builds some of them.
pub(crate) fn build_only(profile: &str, packages: &[&str]) -> Result<()> {
    ebpf::ensure_built()?;
    let mut command = cargo(&["build", "--quiet", "--profile", profile]);
    packages.iter().for_each(|package| {
        command.args(["-p", package]);
    });
    step(&format!("building {}", packages.join(", ")), &mut command)
}

/// Environment in which scenarios find the binaries of a profile.
pub(crate) fn with_binaries<'c>(command: &'c mut Command, profile: &str) -> &'c mut Command {
    let dir = profile_dir(profile);
    command
        .env("FAIRLEAD_TEST_NODE", dir.join("fairlead-node"))
        .env("FAIRLEAD_TEST_CONTROLLER", dir.join("fairlead-controller"))
        .env("FAIRLEAD_TEST_CNI", dir.join("fairlead-cni"))
        .env("FAIRLEAD_TEST_CLI", dir.join("fairlead"))
        .env("FAIRLEAD_TEST_APPS", dir.join("fairlead-apps"))
}

/// Runs scenarios whose names contain one of `filters` (all, when there is none).
pub(crate) fn scenarios(
    profile: &str,
    jobs: usize,
    filters: &[&str],
    env: &[(&str, String)],
    tally: &mut Tally,
) -> Result<()> {
    let jobs = format!("--test-threads={jobs}");
    let mut args = vec![
        "test",
        "--quiet",
        "--profile",
        profile,
        "-p",
        "fairlead-tests",
        "--test",
        "scenarios",
    ];
    args.extend(["--", "--format=pretty", &jobs]);
    args.extend(filters);
    let mut command = cargo(&args);
    with_binaries(&mut command, profile).envs(env.iter().map(|(k, v)| (k, v)));
    let before = tally.failed;
    let ok = watch(&mut command, |line| tally.read(line))?;
    // A run that died without telling a result is a failure too.
    if !ok && tally.failed == before {
        tally.failed += 1;
        tally.failures.push("the scenario runner itself".into());
    }
    Ok(())
}

/// Runs the tests of some packages in the development profile.
fn unit(what: &str, packages: &[&str], args: &Args, tally: &mut Tally) -> Result<()> {
    heading(what);
    let mut command = cargo(&["test", "--quiet", "--no-fail-fast"]);
    command.args(packages).args(["--", "--format=pretty"]).args(&args.filter);
    let before = tally.failed;
    if !watch(&mut command, |line| tally.read(line))? && tally.failed == before {
        tally.failed += 1;
        tally.failures.push(format!("building: {what}"));
    }
    Ok(())
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    ensure!(args.jobs > 0, "--jobs has to be at least 1");
    note_room(&target_dir(), ROOM)?;
    if !args.unit {
        tools::require_root("the scenario part of `test` (see --unit)")?;
        tools::require(tools::NETWORK)?;
        tools::require(tools::NETFILTER)?;
        tools::require(tools::ON_NODES)?;
        for what in run::clean(Which::Dead)? {
            eprintln!("removed {what} of an interrupted run");
        }
        for name in fairlead_cluster::cluster::clean(false)? {
            eprintln!("removed cluster {name} of an interrupted run");
        }
        cluster::require_tools()?;
        if args.filter.is_none() {
            // Long before a scenario waits for it, and where it can be seen.
            cluster::require_programs()?;
        }
    }
    ebpf::ensure_built()?;
    let mut tally = Tally::default();
    if !args.scenarios {
        // Whatever needs no root: unit tests, tests of single crates, examples in documentation.
        let packages =
            ["--workspace", "--exclude", "fairlead-tests", "--exclude", "fairlead-capture"];
        unit("unit tests", &packages, args, &mut tally)?;
        // These two have tests with root beside their unit tests, which follow below.
        let packages = ["-p", "fairlead-tests", "-p", "fairlead-capture", "--lib"];
        unit("unit tests of harness and capture", &packages, args, &mut tally)?;
    }
    if !args.unit {
        let kernel = ["-p", "fairlead-capture", "--test", "kernel"];
        unit("capture against the kernel", &kernel, args, &mut tally)?;
        build(&args.profile)?;
        heading(&format!("scenarios, {} side by side", args.jobs));
        let filters: Vec<&str> = args.filter.iter().map(String::as_str).collect();
        let mut env = Vec::new();
        if filters.iter().all(|filter| CONFORMANCE.contains(filter)) {
            env.push(("FAIRLEAD_TEST_H2SPEC", tools::h2spec()?.display().to_string()));
        }
        scenarios(&args.profile, args.jobs, &filters, &env, &mut tally)?;
    }
    for name in &tally.failures {
        println!("failed: {name}");
    }
    println!("after {:.0} s", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        tally.read("test a::b ... ok");
        tally.read("test a::c ... FAILED");
        tally.read(
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 4 filtered out",
        );
        tally.read("test result: ok. 1 passed; 0 failed; 0 ignored");
        assert_eq!((tally.passed, tally.failed), (13, 3));
        assert_eq!(tally.failures, ["a::c"]);
    }
}
