//! Tools of the system that the scenarios and the demo need: found, installed, or named.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::workspace;

/// Command and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What namespaces and packets are handled with.
pub(crate) const NETWORK: &[Tool] = &[("ip", "iproute2"), ("tcpdump", "tcpdump")];

/// What shows that no netfilter rule exists.
pub(crate) const NETFILTER: &[Tool] = &[("nft", "nftables"), ("iptables-save", "iptables")];

fn found(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(standard).any(|dir| dir.join(command).is_file())
}

/// Makes sure that the tools are there; installs them where that is possible.
pub(crate) fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(command, _)| !found(command)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    require_packages(&packages)
}

/// Installs Debian packages that are missing, where that is possible.
pub(crate) fn require_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let named = packages.join(", ");
    if !workspace::is_root() || !found("apt-get") {
        bail!("missing packages: {named}. Install them and try again");
    }
    workspace::heading(&format!("installing {named}"));
    let apt = |args: &[&str]| {
        Command::new("apt-get")
            // Somebody else may be installing something: wait for them.
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // No service of an installed package is to be started.
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null())
            .status()
    };
    let install = [&["install", "-y", "-q", "--no-install-recommends"], packages].concat();
    if !apt(&install)?.success() {
        // Most often the package lists are missing or old.
        apt(&["update", "-q"])?;
        if !apt(&install)?.success() {
            bail!("apt-get could not install {named}");
        }
    }
    Ok(())
}

/// Scenarios make namespaces and load programs into the kernel.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !workspace::is_root() {
        bail!("{what} makes network namespaces and loads eBPF programs: run it as root");
    }
    Ok(())
}
