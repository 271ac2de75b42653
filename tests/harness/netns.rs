//! Network namespaces: made, entered by a thread, removed.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::shell;

/// A named network namespace (`ip netns`); removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    kept: AtomicBool,
}

impl Netns {
    /// Makes a namespace with its loopback up and without duplicate address detection, which
    /// would keep IPv6 addresses unusable for a second.
    ///
    /// # Errors
    /// Not root, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        shell::run("ip", &["netns", "add", name])?;
        let netns = Self { name: name.to_owned(), kept: AtomicBool::new(false) };
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        shell::ip_batch(Some(name), "link set lo up\n")?;
        Ok(netns)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace where it is when this is dropped.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Where the namespace can be opened.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace. Processes that it starts are in
    /// the namespace too.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                        .with_context(|| format!("entering {}", path.display()))?;
                    work()
                })
                .join()
                .map_err(|panic| {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    anyhow!("panicked: {}", text.unwrap_or("?"))
                })?
        })
    }

    /// Sets a network parameter, by its path below `/proc/sys`.
    ///
    /// # Errors
    /// There is no such parameter.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{path}");
        self.enter(|| std::fs::write(&file, value).with_context(|| format!("{file} = {value}")))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = shell::run("ip", &["netns", "del", &self.name]) {
            eprintln!("removing {}: {error:#}", self.name);
        }
    }
}
