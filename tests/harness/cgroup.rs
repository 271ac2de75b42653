//! Cgroups of the v2 hierarchy: where nodes and pods keep their processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::eventually;

/// Where the cgroup v2 hierarchy is mounted (beside v1 or alone).
///
/// # Errors
/// It is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let line = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2"));
    line.and_then(|l| l.split(' ').nth(1)).map(PathBuf::from).context("cgroup v2 is not mounted")
}

/// A cgroup; on drop its processes are killed and it is removed with all below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("removing {}: {error:#}", self.path.display());
        }
    }
}

/// Kills all processes of a cgroup and removes it with all below it.
///
/// # Errors
/// A process does not go away.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").context("cgroup.kill")?;
    eventually("processes of a cgroup to end", Duration::from_secs(10), || {
        Ok(remove_tree(path).map(|()| Some(()))?)
    })
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
