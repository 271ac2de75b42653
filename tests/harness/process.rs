//! Processes of a scenario: started in a namespace and a cgroup, ended with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::Netns;
use crate::wait::eventually;

static BINARIES: OnceLock<PathBuf> = OnceLock::new();

/// Says where the binaries of the workspace are, for a program that lies elsewhere.
pub fn use_binaries_of(dir: &Path) {
    BINARIES.get_or_init(|| dir.to_owned());
}

/// A binary of the workspace: where `variable` says, else beside the running program.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    let mut dir = BINARIES.get().map(PathBuf::as_path).or_else(|| exe.parent());
    while let Some(at) = dir {
        let path = at.join(name);
        if path.is_file() {
            return Ok(path);
        }
        dir = at.parent().filter(|_| at.ends_with("deps"));
    }
    anyhow::bail!("{name} is not built: run `cargo xtask test`, or set {variable}")
}

/// Where a process runs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its network namespace.
    pub netns: &'a Netns,
    /// Its cgroup.
    pub cgroup: &'a Path,
}

/// A command that joins the cgroup, then becomes the program: not one instruction of the program
/// runs outside.
fn command(cgroup: &Path, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
        .arg(cgroup)
        .arg(program)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end in `place`; what it printed.
///
/// # Errors
/// It cannot be started, fails, or takes longer than `limit`.
pub fn run(
    place: Place<'_>,
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
    limit: Duration,
) -> Result<String> {
    let told = || format!("{} {} in {}", program.display(), args.join(" "), place.netns.name());
    let mut child = place.netns.enter(|| {
        command(place.cgroup, program, args, env)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(told)
    })?;
    // The pipes are read on threads, so that a long answer cannot stall the program.
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_string(&mut text).ok();
            }
            text
        })
    };
    let out = reader(out.map(|p| Box::new(p) as _));
    let err = reader(err.map(|p| Box::new(p) as _));
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill().ok();
            child.wait().ok();
            bail!("{}: not done within {limit:?}", told());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    if !status.success() {
        bail!("{}: {status} {err}{out}", told());
    }
    Ok(out)
}

/// A process that runs beside the scenario; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    /// Standard output and standard error, one after the other as they came.
    log: PathBuf,
}

impl Process {
    /// Starts a program in `place`; its output goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(
        place: Place<'_>,
        program: &Path,
        args: &[&str],
        env: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let name = format!("{} {}", program.display(), args.join(" "));
        let child = place.netns.enter(|| {
            command(place.cgroup, program, args, env)
                .stdout(file.try_clone()?)
                .stderr(file)
                .spawn()
                .with_context(|| name.clone())
        })?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Waits until its output has `text`.
    ///
    /// # Errors
    /// It ended before, or the time is over; with what it printed.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if self.output().contains(text) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{}: ended with {status}: {}", self.name, self.output());
            }
            if start.elapsed() > limit {
                bail!("{}: no {text:?} within {limit:?}: {}", self.name, self.output());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All that it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no pid")?, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        eventually(&format!("end of {name}"), limit, || Ok(self.child.try_wait()?))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
