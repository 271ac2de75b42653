//! What is known about a cluster on disk: one directory, outside any checkout.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{cgroups, network, system};

/// Longest name of a cluster: names of nodes and links are made of it.
const LONGEST_NAME: usize = 30;

/// Most nodes of a cluster: their addresses are one byte.
pub const MOST_NODES: usize = 20;

/// What is remembered about a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// How many nodes it was made with.
    pub nodes: usize,
    /// Whether it has IPv6 beside IPv4.
    pub dual_stack: bool,
    /// Number of its wire to the host.
    pub wire: u16,
    /// kube-proxy's mode.
    pub proxy_mode: String,
    /// Process (id and start time) that it is to end with; `None` when it stays until told.
    pub owner: Option<String>,
}

/// Where clusters are kept: `$FAIRLEAD_CLUSTERS` or `/var/lib/fairlead-clusters`.
#[must_use]
pub fn root() -> PathBuf {
    let told = std::env::var_os("FAIRLEAD_CLUSTERS").filter(|value| !value.is_empty());
    told.map_or_else(|| "/var/lib/fairlead-clusters".into(), PathBuf::from)
}

/// Directory of a cluster.
#[must_use]
pub fn dir(name: &str) -> PathBuf {
    root().join(name)
}

/// Whether a cluster may be called so.
///
/// # Errors
/// It may not.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.chars().all(plain)
            && !name.starts_with('-')
            && !name.ends_with('-'),
        "{name:?} cannot be a cluster's name: at most {LONGEST_NAME} of a-z, 0-9 and -, which is \
         neither first nor last"
    );
    Ok(())
}

/// Keeps clusters from being claimed or cleaned away by others, until it is dropped.
pub(crate) fn lock() -> Result<File> {
    fs::create_dir_all(root())?;
    let file = File::create(root().join(".lock"))?;
    file.lock()?;
    Ok(file)
}

/// Makes a directory for a new cluster and gives it a wire to the host.
pub(crate) fn claim(
    name: &str,
    nodes: usize,
    dual_stack: bool,
    proxy_mode: &str,
    owner: Option<String>,
) -> Result<Record> {
    check_name(name)?;
    ensure!(nodes <= MOST_NODES, "a cluster has at most {MOST_NODES} nodes");
    let _lock = lock()?;
    match fs::create_dir(dir(name)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("cluster {name} is there already: `cargo xtask cluster down --name {name}` first")
        }
        Err(error) => return Err(error).with_context(|| dir(name).display().to_string()),
    }
    let taken: Vec<u16> = list()?.iter().filter_map(|n| read(n).ok()).map(|r| r.wire).collect();
    let wire = network::free_wire(&taken)?;
    let record = Record {
        name: name.to_owned(),
        nodes,
        dual_stack,
        wire,
        proxy_mode: proxy_mode.to_owned(),
        owner,
    };
    write(&record)?;
    Ok(record)
}

fn write(record: &Record) -> Result<()> {
    let text = serde_json::to_string_pretty(record)?;
    Ok(fs::write(dir(&record.name).join("cluster.json"), text)?)
}

/// From now on the cluster belongs to no process.
pub(crate) fn disown(record: &mut Record) -> Result<()> {
    let _lock = lock()?;
    record.owner = None;
    write(record)
}

/// What is known about a cluster.
///
/// # Errors
/// There is none of that name.
pub fn read(name: &str) -> Result<Record> {
    check_name(name)?;
    let path = dir(name).join("cluster.json");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("there is no cluster {name} (`cargo xtask cluster up --name {name}` makes it)")
    })?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Names of all clusters, also of those of which only a directory or a cgroup is left.
///
/// # Errors
/// The directories cannot be read.
pub fn list() -> Result<Vec<String>> {
    let mut names = cgroups::clusters()?;
    match fs::read_dir(root()) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        entries => {
            for entry in entries?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() && check_name(&name).is_ok() {
                    names.push(name);
                }
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether the process that a cluster belongs to has ended without taking it down.
#[must_use]
pub fn is_orphan(name: &str) -> bool {
    match read(name) {
        Ok(Record { owner: None, .. }) => false,
        Ok(Record { owner: Some(owner), .. }) => {
            let pid = owner.split(' ').next().and_then(|pid| pid.parse().ok());
            pid.and_then(system::identity_of).is_none_or(|now| now != owner)
        }
        // Only remains: nobody can use it.
        Err(_) => true,
    }
}

/// Removes a directory tree.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
