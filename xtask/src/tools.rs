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
    let named = missing.iter().map(|(c, p)| format!("{c} (package {p})")).collect::<Vec<_>>();
    if !workspace::is_root() || !found("apt-get") {
        bail!("missing: {}. Install them and try again", named.join(", "));
    }
    workspace::heading(&format!("installing {}", packages.join(", ")));
    let apt = |args: &[&str]| {
        Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
    };
    let install: Vec<&str> =
        ["install", "-y", "-q", "--no-install-recommends"].into_iter().chain(packages).collect();
    if !apt(&install)?.success() {
        // Most often the package lists are missing or old.
        apt(&["update", "-q"])?;
        if !apt(&install)?.success() {
            bail!("apt-get could not install {}", named.join(", "));
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
