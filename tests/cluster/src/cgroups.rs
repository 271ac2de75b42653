//! Cgroups of a cluster: one subtree of the same name in every hierarchy (v2, and v1 where it is
//! mounted), so that killing and counting take one path.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::system::eventually;

/// What the names of all clusters' cgroups begin with.
pub const PREFIX: &str = "fl-cluster-";

/// Where one hierarchy is mounted.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// Whether it is cgroup v2.
    pub unified: bool,
    /// Mount options that choose its controllers (v1).
    pub options: String,
}

/// All hierarchies that are mounted, v2 first.
///
/// # Errors
/// Cgroup v2 is not mounted.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(root), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if kind != "cgroup2" && kind != "cgroup" {
            continue;
        }
        let controllers = |option: &&str| {
            !["rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "clone_children"]
                .contains(option)
                && !option.starts_with("release_agent=")
        };
        let options: Vec<&str> = options.split(',').filter(controllers).collect();
        let hierarchy = Hierarchy {
            root: root.into(),
            unified: kind == "cgroup2",
            // xattr is an option of its own and chooses no controller.
            options: options.into_iter().filter(|o| *o != "xattr").collect::<Vec<_>>().join(","),
        };
        if hierarchy.unified { found.insert(0, hierarchy) } else { found.push(hierarchy) }
    }
    found.first().filter(|first| first.unified).context("cgroup v2 is not mounted")?;
    Ok(found)
}

/// Makes the cgroup `path` (relative to the roots) in every hierarchy.
///
/// # Errors
/// It cannot be made.
pub fn create(path: &str) -> Result<()> {
    let all = hierarchies()?;
    let alone = all.len() == 1;
    for hierarchy in all {
        let mut at = hierarchy.root.clone();
        for part in path.split('/') {
            if alone {
                // Only on a pure v2 system do controllers have to be handed down.
                delegate(&at);
            }
            let parent = at.clone();
            at.push(part);
            match fs::create_dir(&at) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| at.display().to_string()),
            }
            // A v1 cpuset takes no process before it is told its processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = at.join(file);
                if !hierarchy.unified && own.exists() {
                    fs::write(&own, fs::read_to_string(parent.join(file))?.trim())
                        .with_context(|| own.display().to_string())?;
                }
            }
        }
    }
    Ok(())
}

fn delegate(at: &Path) {
    let Ok(controllers) = fs::read_to_string(at.join("cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        // One that cannot be handed down is missed by the kubelet, which then says so.
        fs::write(at.join("cgroup.subtree_control"), format!("+{controller}")).ok();
    }
}

/// The files to which a process writes its id to join `path`.
///
/// # Errors
/// Cgroup v2 is not mounted.
pub fn doors(path: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.iter().map(|h| h.root.join(path).join("cgroup.procs")).collect())
}

/// The v2 directory of `path`.
///
/// # Errors
/// Cgroup v2 is not mounted.
pub fn unified(path: &str) -> Result<PathBuf> {
    let first = hierarchies()?.into_iter().next().context("no hierarchy")?;
    Ok(first.root.join(path))
}

/// Processes directly in the v2 cgroup `path`.
///
/// # Errors
/// Cgroup v2 is not mounted. A cgroup that does not exist has no process.
pub fn processes(path: &str) -> Result<Vec<u32>> {
    let text = fs::read_to_string(unified(path)?.join("cgroup.procs")).unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
}

/// Kills all processes in and below `path` and waits for their end.
///
/// # Errors
/// They do not go away.
pub fn kill(path: &str) -> Result<()> {
    let dir = unified(path)?;
    if !dir.exists() {
        return Ok(());
    }
    eventually(&format!("the end of all processes of {path}"), Duration::from_secs(30), || {
        // Somebody else may be removing it.
        if !dir.exists() {
            return Ok(Some(()));
        }
        fs::write(dir.join("cgroup.kill"), "1").context("cgroup.kill")?;
        let events = fs::read_to_string(dir.join("cgroup.events"))?;
        Ok(events.lines().any(|line| line == "populated 0").then_some(()))
    })
}

/// Removes `path` and all below it from every hierarchy; its processes have ended.
///
/// # Errors
/// Something is still in it.
pub fn remove(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let dir = hierarchy.root.join(path);
        eventually(&format!("removing {}", dir.display()), Duration::from_secs(10), || {
            remove_tree(&dir).map(Some).with_context(|| dir.display().to_string())
        })?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names of the clusters that have a cgroup.
///
/// # Errors
/// Cgroup v2 is not mounted.
pub fn clusters() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(&hierarchy.root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_prefix(PREFIX).map(str::to_owned));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Memory of all processes in and below `path` in bytes, as they would have to share it
/// (proportional set size).
///
/// # Errors
/// Cgroup v2 is not mounted.
pub fn memory(path: &str) -> Result<u64> {
    fn below(dir: &Path) -> u64 {
        let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let own: u64 = procs.lines().filter_map(pss).sum();
        let Ok(entries) = fs::read_dir(dir) else { return own };
        let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        own + dirs.map(|e| below(&e.path())).sum::<u64>()
    }
    Ok(below(&unified(path)?))
}

fn pss(pid: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
