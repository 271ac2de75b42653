//! The name of a run, its directory, and removing what a killed run left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use fairlead_cluster::system::identity_of;

use crate::{cgroup, shell};

/// What all names of all runs begin with.
pub const PREFIX: &str = "fl-";

/// Where runs keep their files.
pub const DIRECTORY: &str = "/run/fairlead-tests";

/// Where eBPF objects are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A run: a unique name and a directory, removed on drop unless kept.
#[derive(Debug)]
pub struct Run {
    id: String,
    keep: bool,
}

impl Run {
    /// A run of this process.
    ///
    /// # Errors
    /// Its directory cannot be made, or the eBPF file system cannot be mounted.
    pub fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{:x}x{n}", std::process::id());
        let run = Self { id, keep: false };
        fs::create_dir_all(run.dir()).with_context(|| format!("{}", run.dir().display()))?;
        fs::write(
            run.dir().join("owner"),
            identity_of(std::process::id()).context("no process of our own")?,
        )?;
        mount_bpffs()?;
        Ok(run)
    }

    /// The name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.id)
    }

    /// Where its eBPF objects are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.id)
    }

    /// Leaves the directory where it is, for people to look at.
    pub fn keep(&mut self) {
        self.keep = true;
        fs::write(self.dir().join("owner"), "kept").ok();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        fs::remove_dir_all(self.pins()).ok();
        if std::env::var_os("FAIRLEAD_KEEP_LOGS").is_some() {
            return;
        }
        fs::remove_dir_all(self.dir()).ok();
    }
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if !mounts.lines().any(|l| l.split(' ').nth(1) == Some(BPFFS)) {
        shell::run("mount", &["-t", "bpf", "bpf", BPFFS])?;
    }
    Ok(())
}

/// Which runs [`clean`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose process is gone.
    Dead,
    /// Those, and what `--keep` kept.
    DeadAndKept,
}

/// Removes what interrupted runs left: processes, cgroups, namespaces, pins, files. What it
/// removed, in words.
///
/// # Errors
/// Something resists.
pub fn clean(which: Which) -> Result<Vec<String>> {
    let mut alive = Vec::new();
    let mut told = Vec::new();
    if let Ok(entries) = fs::read_dir(DIRECTORY) {
        for entry in entries {
            let entry = entry?;
            let said = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
            let pid = said.split(' ').next().and_then(|p| p.parse().ok());
            let lives = pid.and_then(identity_of).is_some_and(|now| now == said);
            let kept = said == "kept" && which == Which::Dead;
            if lives || kept {
                alive.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    // The name of a run, or `<name>-<part>`.
    let stale = |name: &str| {
        let of = |id: &String| name == id || name.starts_with(&format!("{id}-"));
        // Tests of single crates put the number of their process into the name.
        let lives = |part: &str| {
            part.parse::<u32>().is_ok_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
        };
        // Clusters outlive the process that made them, and are taken down as a whole.
        let cluster = name.starts_with(fairlead_cluster::cgroups::PREFIX);
        name.starts_with(PREFIX) && !cluster && !alive.iter().any(of) && !name.split('-').any(lives)
    };
    let names = |dir: &Path| -> Vec<String> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| stale(n))
            .collect()
    };
    let root = cgroup::mount_point()?;
    for name in names(&root) {
        cgroup::remove(&root.join(&name))?;
        told.push(format!("cgroup {name}"));
    }
    for name in names(Path::new("/run/netns")) {
        shell::run("ip", &["netns", "del", &name])?;
        told.push(format!("network namespace {name}"));
    }
    for (dir, what) in [(BPFFS, "pins"), (DIRECTORY, "files")] {
        for name in names(Path::new(dir)) {
            fs::remove_dir_all(Path::new(dir).join(&name))?;
            told.push(format!("{what} {name}"));
        }
    }
    Ok(told)
}
