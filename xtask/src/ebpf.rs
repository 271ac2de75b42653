//! `build-ebpf`: finds or installs a compiler for eBPF, builds the programs, and puts the object
//! where the build script of `fairlead-capture` embeds it from.
//!
//! Rust's own toolchains have no prebuilt `core` for eBPF, and the linker that turns LLVM bitcode
//! into an eBPF object must use the LLVM of the compiler that wrote it. Debian ships a matching
//! set; elsewhere a nightly with `rust-src` does.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The linker and its version; `cargo install` builds it once, into the cache.
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
/// Where the object goes, below the target directory. `userspace/capture/build.rs` knows it too.
const OBJECT: &str = "ebpf/fairlead.bpf.o";
const STAMP: &str = "ebpf/fairlead.bpf.stamp";
/// Debian's packages: compiler, its cargo, `core` for eBPF, and the LLVM that they are built with.
const DEBIAN_PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"];
/// Changes when this file builds otherwise from the same sources.
const RECIPE: u32 = 1;

/// Builds the eBPF object that the daemon embeds, if its sources changed.
///
/// Finds a compiler by itself: Debian's (installed when root on Debian), or a nightly with
/// rust-src. The linker is kept in $FAIRLEAD_CACHE, $XDG_CACHE_HOME/fairlead or ~/.cache/fairlead,
/// so that `cargo clean` does not cost its build. $FAIRLEAD_BPF_LINKER names one to use instead.
///
/// Examples:
///   cargo xtask build-ebpf
///   cargo xtask build-ebpf --force
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Build even if nothing changed
    #[arg(long)]
    force: bool,
}

/// A compiler for eBPF.
struct Toolchain {
    /// For people: which, and why this one.
    description: String,
    /// Program and first arguments of cargo.
    cargo: Vec<OsString>,
    /// The compiler that cargo has to use, where cargo would not find it.
    rustc: Option<PathBuf>,
    /// Major version of its LLVM.
    llvm: u32,
    /// Whether `core` has to be built along.
    build_core: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    build(args.force)
}

/// Makes sure that the object is there and current: for tasks that go on to build the daemon.
pub(crate) fn ensure_built() -> Result<()> {
    build(false)
}

fn build(force: bool) -> Result<()> {
    let (root, target) = (workspace::root(), workspace::target_dir());
    let (object, stamp) = (target.join(OBJECT), target.join(STAMP));
    let sources = hash_sources(&root.join("ebpf"))?;
    let current =
        || object.is_file() && fs::read_to_string(&stamp).is_ok_and(|was| was.trim() == sources);
    if !force && current() {
        println!("eBPF object is current: {}", object.display());
        return Ok(());
    }
    let started = Instant::now();
    let toolchain = find_or_install()?;
    println!("eBPF toolchain: {}", toolchain.description);
    let linker = linker(&toolchain)?;
    compile(&root, &target, &toolchain, &linker, &object)?;
    write_atomically(&stamp, sources.as_bytes())?;
    println!("built {} in {:.1} s", object.display(), started.elapsed().as_secs_f32());
    Ok(())
}

/// Where tools are kept that a task built for itself.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("FAIRLEAD_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("fairlead")))
        .or_else(|| Some(var("HOME")?.join(".cache/fairlead")))
        .context("set FAIRLEAD_CACHE: there is no HOME to keep tools under")
}

/// A digest of all that the object is made of.
fn hash_sources(dir: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    (RECIPE, LINKER_VERSION).hash(&mut hasher);
    for file in files {
        file.strip_prefix(dir)?.hash(&mut hasher);
        fs::read(&file).with_context(|| file.display().to_string())?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        } else if path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        }
    }
    Ok(())
}

/// The first toolchain that is complete, or Debian's after installing it.
fn find_or_install() -> Result<Toolchain> {
    let debian = match debian() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    let nightly = match nightly() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    let installable = Path::new("/etc/debian_version").exists() && workspace::is_root();
    if !installable {
        bail!(
            "no toolchain for eBPF.\n  Debian's: {debian}; as root on Debian 12, `apt-get install \
             {}` (this task does it by itself there)\n  rustup's: {nightly}",
            DEBIAN_PACKAGES.join(" ")
        );
    }
    println!(
        "installing {}: the eBPF programs need a compiler with `core` for eBPF and the LLVM that \
         it was built with ({debian})",
        DEBIAN_PACKAGES.join(", ")
    );
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        // Somebody else may be installing something: wait for them.
        command.args(["-o", "DPkg::Lock::Timeout=300"]).args(words);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        check(&mut command)
    };
    apt(&["update", "-q"])?;
    apt(&[&["install", "-q", "-y", "--no-install-recommends"], DEBIAN_PACKAGES].concat()).context(
        "next: Debian 12 has these packages in bookworm-updates and bookworm-security; see that \
         apt's sources name both, as an installed Debian's do",
    )?;
    debian_toolchain().context("Debian's packages are installed, yet")
}

fn debian() -> Result<Toolchain, String> {
    debian_toolchain().map_err(|error| format!("{error:#}"))
}

fn nightly() -> Result<Toolchain, String> {
    nightly_toolchain().map_err(|error| format!("{error:#}"))
}

fn debian_toolchain() -> Result<Toolchain> {
    let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
    for tool in [&rustc, &cargo] {
        if !tool.exists() {
            bail!("{} is missing", tool.display());
        }
    }
    let core = Path::new("/usr/lib/rustlib").join(bpf_target()).join("lib");
    if !core.is_dir() {
        bail!("{} is missing", core.display());
    }
    let llvm = llvm_of(Command::new(&rustc))?;
    llvm_prefix(llvm)?;
    Ok(Toolchain {
        description: format!(
            "Debian's {} with LLVM {llvm}: it ships `core` for eBPF",
            version_of(Command::new(&rustc))?
        ),
        cargo: vec![cargo.into()],
        rustc: Some(rustc),
        llvm,
        build_core: false,
    })
}

fn nightly_toolchain() -> Result<Toolchain> {
    let rustup = |tool: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", tool]);
        clean_env(&mut command);
        command
    };
    let sysroot = output(rustup("rustc").args(["--print", "sysroot"]))
        .context("no nightly (rustup toolchain install nightly --component rust-src)")?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        bail!("the nightly has no rust-src (rustup component add rust-src --toolchain nightly)");
    }
    let llvm = llvm_of(rustup("rustc"))?;
    if own_linker().is_none() {
        llvm_prefix(llvm)?;
    }
    Ok(Toolchain {
        description: format!(
            "rustup's {} with LLVM {llvm}, building `core` along",
            version_of(rustup("rustc"))?
        ),
        cargo: ["rustup", "run", "nightly", "cargo"].map(OsString::from).into(),
        rustc: None,
        llvm,
        build_core: true,
    })
}

fn version_of(mut rustc: Command) -> Result<String> {
    Ok(output(rustc.arg("--version"))?.trim().to_owned())
}

fn llvm_of(mut rustc: Command) -> Result<u32> {
    let text = output(rustc.arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .context("rustc -vV names no LLVM version")
}

/// Where the development files of an LLVM are.
fn llvm_prefix(major: u32) -> Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if !prefix.join("bin/llvm-config").exists() {
        bail!("{} is missing (package llvm-{major}-dev)", prefix.join("bin/llvm-config").display());
    }
    Ok(prefix)
}

/// A linker that the user brings along, for toolchains whose LLVM has no packages.
fn own_linker() -> Option<PathBuf> {
    std::env::var_os("FAIRLEAD_BPF_LINKER").map(PathBuf::from)
}

/// The linker for the toolchain's LLVM: from the cache, or built into it.
fn linker(toolchain: &Toolchain) -> Result<PathBuf> {
    if let Some(own) = own_linker() {
        return Ok(own);
    }
    let cache = cache_dir()?;
    let name = format!("{LINKER}-{LINKER_VERSION}-llvm{}", toolchain.llvm);
    let home = cache.join(&name);
    let linker = home.join("bin").join(LINKER);
    if linker.is_file() {
        return Ok(linker);
    }
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    // Two builds at once would spoil each other; the second finds the first one's result.
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    if linker.is_file() {
        return Ok(linker);
    }
    println!(
        "building {LINKER} {LINKER_VERSION} for LLVM {}: it turns bitcode into the eBPF object; \
         once, two to three minutes, kept in {}",
        toolchain.llvm,
        home.display()
    );
    let prefix = llvm_prefix(toolchain.llvm)?;
    let unfinished = cache.join(format!("{name}.unfinished"));
    let build = cache.join(format!("{name}.build"));
    let mut command = cargo(toolchain);
    command
        .args(["install", "--locked", "--no-track", "--no-default-features", LINKER])
        .args(["--version", LINKER_VERSION])
        .arg(format!("--features=llvm-{}", toolchain.llvm))
        .arg("--root")
        .arg(&unfinished)
        .env("CARGO_TARGET_DIR", &build)
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", path_with(&prefix.join("bin"))?)
        .env("RUSTFLAGS", format!("-L {}", prefix.join("lib").display()))
        // Not in the repository, whose cargo configuration is for other builds.
        .current_dir(&cache);
    check(&mut command)?;
    fs::rename(&unfinished, &home).context("keeping the linker")?;
    fs::remove_dir_all(&build).context("removing the linker's build files")?;
    Ok(linker)
}

fn compile(
    root: &Path,
    target: &Path,
    toolchain: &Toolchain,
    linker: &Path,
    object: &Path,
) -> Result<()> {
    let build = target.join("ebpf/build");
    let triple = bpf_target();
    // One flag per argument, as `CARGO_ENCODED_RUSTFLAGS` wants them. The line tables become BTF,
    // without which the kernel takes no socket storage.
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ];
    let mut command = cargo(toolchain);
    command
        .args(["build", "--locked", "--release", "--target", triple])
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // eBPF is not a stable target: assembly for it and linker arguments are gated.
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(root.join("ebpf/programs"));
    if toolchain.build_core {
        command.arg("-Zbuild-std=core");
    }
    check(&mut command)?;
    let built = build.join(triple).join("release/fairlead-programs");
    // What is left of the line tables after BTF was made would only swell the daemon.
    let stripper = llvm_prefix(toolchain.llvm).map(|prefix| prefix.join("bin/llvm-objcopy"));
    let partial = object.with_extension("partial");
    match stripper {
        Ok(objcopy) if objcopy.exists() => {
            check(Command::new(objcopy).arg("--strip-debug").arg(&built).arg(&partial))?;
        }
        _ => {
            fs::copy(&built, &partial).with_context(|| built.display().to_string())?;
        }
    }
    fs::rename(&partial, object).with_context(|| object.display().to_string())
}

/// cargo of the toolchain, free of what the cargo that runs this task has set.
fn cargo(toolchain: &Toolchain) -> Command {
    let mut words = toolchain.cargo.iter();
    let mut command = Command::new(words.next().map_or("cargo".as_ref(), OsString::as_os_str));
    command.args(words);
    clean_env(&mut command);
    if let Some(rustc) = &toolchain.rustc {
        command.env("RUSTC", rustc);
    }
    command
}

fn clean_env(command: &mut Command) {
    for name in [
        "CARGO",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
}

fn bpf_target() -> &'static str {
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

fn path_with(first: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(dirs)?)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| name(command))?;
    if !output.status.success() {
        bail!("{}: {}", name(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| name(command))?;
    if !status.success() {
        bail!("{} failed: {status}", name(command));
    }
    Ok(())
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, path).with_context(|| path.display().to_string())
}
