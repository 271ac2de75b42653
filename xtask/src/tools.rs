//! Tools of the system that the scenarios and the demo need: found, installed, or named.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{ebpf, workspace};

/// Command and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What namespaces and packets are handled with.
pub(crate) const NETWORK: &[Tool] = &[("ip", "iproute2"), ("tcpdump", "tcpdump")];

/// What shows that no netfilter rule exists.
pub(crate) const NETFILTER: &[Tool] = &[("nft", "nftables"), ("iptables-save", "iptables")];

/// What scenarios ask the daemons of a cluster's nodes with, where only loopback is answered.
pub(crate) const ON_NODES: &[Tool] = &[("curl", "curl")];

/// What the HTTP/2 conformance tester is built with.
const GO: Tool = ("go", "golang-go");

/// Package of the HTTP/2 conformance tester; `tests/h2spec` pins its version.
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec";

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

/// The Go compiler: as found in the path, or where its own installer puts it.
fn go() -> Result<PathBuf> {
    let own = Path::new("/usr/local/go/bin/go");
    if !found(GO.0) && own.is_file() {
        return Ok(own.to_owned());
    }
    require(&[GO])
        .context("the HTTP/2 conformance scenario (h2spec) is built with Go, 1.18 or later")?;
    Ok(GO.0.into())
}

/// The HTTP/2 conformance tester: from the cache, or built into it from the versions that
/// `tests/h2spec` pins.
pub(crate) fn h2spec() -> Result<PathBuf> {
    let module = workspace::root().join("tests/h2spec");
    let mut pinned = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        fs::read(module.join(file))
            .with_context(|| format!("tests/h2spec/{file}"))?
            .hash(&mut pinned);
    }
    let cache = ebpf::cache_dir()?;
    let tool = cache.join(format!("h2spec-{:016x}", pinned.finish()));
    if tool.is_file() {
        return Ok(tool);
    }
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let lock = fs::File::create(cache.join("lock"))?;
    lock.lock()?;
    if tool.is_file() {
        return Ok(tool);
    }
    let unfinished = cache.join("h2spec.unfinished");
    workspace::step(
        "building the HTTP/2 conformance tester (h2spec); once",
        Command::new(go()?)
            .args(["build", "-trimpath", "-o"])
            .arg(&unfinished)
            .arg(H2SPEC)
            .current_dir(&module)
            // One binary without a C library, by the compiler that is there.
            .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "-mod=readonly")]),
    )?;
    fs::rename(&unfinished, &tool).context("keeping h2spec")?;
    Ok(tool)
}

/// Scenarios make namespaces and load programs into the kernel.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !workspace::is_root() {
        bail!("{what} makes network namespaces and loads eBPF programs: run it as root");
    }
    Ok(())
}
