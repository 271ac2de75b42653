//! Namespaces of a cluster and of its nodes: made, entered, found again by their cgroups.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{cgroups, system};

/// Joins the cgroups whose doors come first, then becomes the program behind `--`: not one
/// instruction of the program runs outside.
const JOIN: &str = "while [ \"$1\" != -- ]; do echo $$ > \"$1\" || exit 71; shift; done; shift; \
                    exec \"$@\"";

/// The first process of a namespace: it ignores SIGCHLD, so that the kernel reaps orphans.
pub(crate) const INIT: &str = "exec env --ignore-signal=CHLD sleep infinity";

/// Search path of all that runs in a cluster.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which namespaces to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The outer ones, where the control plane is.
    Outer,
    /// Those of a node.
    Node,
}

/// A command inside the cgroup `path`, with nothing of our environment.
pub(crate) fn joined(path: &str) -> Result<Command> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", JOIN, "sh"]).args(cgroups::doors(path)?).arg("--");
    clean(&mut command);
    Ok(command)
}

fn clean(command: &mut Command) {
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    command.stdin(Stdio::null());
}

/// Appends what enters the namespaces of the process `init`.
pub(crate) fn enter(command: &mut Command, place: Place, init: u32) {
    command.args(["nsenter", "-t", &init.to_string(), "-m", "-n", "-p"]);
    if place == Place::Node {
        command.args(["-u", "-i", "-C"]);
    }
    command.arg("--");
}

/// A command in the namespaces of `init`, in no cgroup of the cluster.
pub(crate) fn visiting(place: Place, init: u32) -> Command {
    let mut command = Command::new("/usr/bin/env");
    clean(&mut command);
    enter(&mut command, place, init);
    command
}

/// Starts a program that goes on when we end; its output is appended to `log`.
pub(crate) fn start(
    cgroup: &str,
    place: Place,
    init: u32,
    program: &Path,
    args: &[String],
    log: &Path,
) -> Result<()> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = joined(cgroup)?;
    enter(&mut command, place, init);
    // The shell ends at once, and the program becomes a child of the namespace's first process.
    command.args(["/bin/sh", "-c", "setsid \"$@\" &", "sh"]).arg(program).args(args);
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    if !status.success() {
        bail!("starting {}: {status} (see {})", program.display(), log.display());
    }
    Ok(())
}

/// Starts the outer namespaces; their first process.
pub(crate) fn start_outer(cgroup: &str, log: &Path) -> Result<u32> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new("setsid");
    command.arg("--fork");
    let mut inner = joined(cgroup)?;
    command.arg(inner.get_program()).args(inner.get_args());
    clean(&mut command);
    command.args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "--propagation", "private", "/bin/sh", "-c", INIT]);
    inner.stdin(Stdio::null());
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    if !status.success() {
        bail!("starting the outer namespaces: {status} (see {})", log.display());
    }
    wait_for_init(cgroup, log)
}

/// Starts the namespaces of a node, whose first process runs `script` with `args`.
pub(crate) fn start_node(
    cgroup: &str,
    outer: u32,
    script: &str,
    args: &[String],
    log: &Path,
) -> Result<()> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = joined(cgroup)?;
    enter(&mut command, Place::Outer, outer);
    // Joined before: the cgroup namespace has the node's cgroup as its root.
    command.args(["/bin/sh", "-c", "setsid \"$@\" &", "sh"]);
    command.args(["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork"]);
    command.args(["--kill-child", "--propagation", "private", "/bin/sh", "-c", script, "sh"]);
    let status = command.args(args).stdout(file.try_clone()?).stderr(file).status()?;
    if !status.success() {
        bail!("starting a node: {status} (see {})", log.display());
    }
    Ok(())
}

/// Waits until the first process of a namespace has done its work and only sleeps.
pub(crate) fn wait_for_init(cgroup: &str, log: &Path) -> Result<u32> {
    let what = format!("the first process of {cgroup}");
    system::eventually(&what, Duration::from_secs(20), || {
        if let Some(pid) = init_of(cgroup)? {
            return Ok(Some(pid));
        }
        let said = fs::read_to_string(log).unwrap_or_default();
        Err(anyhow::anyhow!("{}", said.trim()))
    })
}

/// The first process of the namespaces whose processes are in `cgroup`, if it is there.
pub(crate) fn init_of(cgroup: &str) -> Result<Option<u32>> {
    let sleeps = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    };
    Ok(cgroups::processes(cgroup)?.into_iter().find(sleeps))
}

/// Runs many `ip` commands in one process, in the network namespace of `pid` or in this one.
pub(crate) fn ip(pid: Option<u32>, commands: &str) -> Result<()> {
    let mut command = match pid {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid.to_string(), "-n", "--", "ip"]);
            command
        }
        None => Command::new("ip"),
    };
    system::output_with(command.args(["-batch", "-"]), commands.as_bytes())
        .with_context(|| commands.to_owned())?;
    Ok(())
}

/// Sets network parameters (paths below `/proc/sys/net`) in the network namespace of `pid`.
pub(crate) fn sysctl(pid: u32, settings: &[(&str, &str)]) -> Result<()> {
    let script: String = settings
        .iter()
        .map(|(path, value)| format!("echo {value} > /proc/sys/net/{path} || exit 1\n"))
        .collect();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "--", "/bin/sh", "-c", &script]);
    system::output(&mut command)?;
    Ok(())
}
