//! The programs of a cluster: built once from Go modules that are pinned in `xtask/cluster`, kept
//! outside the checkout, found again by a digest of what they were built from.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::system;

/// A Go module of ours that pins programs.
struct Module {
    name: &'static str,
    /// Version of what it pins, for people.
    version: &'static str,
    /// Its files: name and content.
    files: &'static [(&'static str, &'static str)],
    /// What is built: package paths; a program is named like the last part, or as told.
    packages: &'static [(&'static str, &'static str)],
    /// Values set at link time.
    stamps: &'static [&'static str],
    /// How long a first build takes on two cores.
    takes: &'static str,
}

macro_rules! module_files {
    ($name:literal) => {
        &[
            ("go.mod", include_str!(concat!("../../../xtask/cluster/", $name, "/go.mod"))),
            ("go.sum", include_str!(concat!("../../../xtask/cluster/", $name, "/go.sum"))),
            ("tools.go", include_str!(concat!("../../../xtask/cluster/", $name, "/tools.go"))),
        ]
    };
}

const MODULES: &[Module] = &[
    Module {
        name: "kubernetes",
        version: "v1.34.4",
        files: module_files!("kubernetes"),
        packages: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
        // Without these, `kubectl version` fails and the API server takes itself for v0.0.0.
        stamps: &[
            "k8s.io/component-base/version.gitVersion=v1.34.4",
            "k8s.io/component-base/version.gitMajor=1",
            "k8s.io/component-base/version.gitMinor=34",
            "k8s.io/client-go/pkg/version.gitVersion=v1.34.4",
            "k8s.io/client-go/pkg/version.gitMajor=1",
            "k8s.io/client-go/pkg/version.gitMinor=34",
        ],
        takes: "seven minutes",
    },
    Module {
        name: "etcd",
        version: "v3.6.5",
        files: module_files!("etcd"),
        packages: &[("etcd", "go.etcd.io/etcd/server/v3")],
        stamps: &[],
        takes: "half a minute",
    },
    Module {
        name: "coredns",
        version: "v1.14.7",
        files: module_files!("coredns"),
        packages: &[("coredns", "github.com/coredns/coredns")],
        stamps: &[],
        takes: "three minutes",
    },
];

/// Where built programs and images are kept: `$FAIRLEAD_CACHE`, `$XDG_CACHE_HOME/fairlead` or
/// `~/.cache/fairlead`.
///
/// # Errors
/// None of them is set.
pub fn cache_dir() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("FAIRLEAD_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("fairlead")))
        .or_else(|| Some(var("HOME")?.join(".cache/fairlead")))
        .context("set FAIRLEAD_CACHE: there is no HOME to keep the cluster's programs under")
}

/// The programs of a cluster, all in one directory.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The programs, when they have been built already.
    ///
    /// # Errors
    /// There is no cache directory.
    pub fn find() -> Result<Option<Self>> {
        let dir = home()?;
        Ok(dir.join("complete").is_file().then_some(Self { dir }))
    }

    /// Finds the programs or builds them, saying so to `say`.
    ///
    /// # Errors
    /// Go is missing, or a build fails.
    pub fn ensure(say: &dyn Fn(&str)) -> Result<Self> {
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let dir = home()?;
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        // Two builds at once would only slow each other; the second finds the first one's result.
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let go = go()?;
        for module in MODULES {
            build(&go, module, &dir, say)?;
        }
        // Gigabytes that no other build of these programs will ever ask for.
        if let Err(e) = fs::remove_dir_all(go_cache(&dir))
            && e.kind() != ErrorKind::NotFound
        {
            return Err(e).context("removing the compiler's cache");
        }
        fs::write(dir.join("complete"), "")?;
        Ok(Self { dir })
    }

    /// The directory that holds them.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of them.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }
}

fn flags(module: &Module) -> String {
    // Without symbol tables: what one debugs here is not Kubernetes, and images load faster.
    let stamps = module.stamps.iter().map(|stamp| format!(" -X {stamp}"));
    format!("-s -w{}", stamps.collect::<String>())
}

/// Where this very set of programs is.
fn home() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for module in MODULES {
        (module.files, module.packages, flags(module)).hash(&mut hasher);
    }
    Ok(cache_dir()?.join("kubernetes").join(format!("{:016x}", hasher.finish())))
}

/// What the Go compiler keeps between two commands while the programs are being built.
fn go_cache(home: &Path) -> PathBuf {
    home.join("compiled")
}

fn go() -> Result<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let found = system::find("go").or_else(|| usual.is_file().then_some(usual));
    found.context(
        "Go is missing: the cluster's programs (Kubernetes, etcd, CoreDNS) are built from source \
         once. Install Go 1.25 or newer (an older Go of 1.21 or newer fetches that by itself), put \
         it on PATH, and try again",
    )
}

fn build(go: &Path, module: &Module, home: &Path, say: &dyn Fn(&str)) -> Result<()> {
    if module.packages.iter().all(|(program, _)| home.join(program).is_file()) {
        return Ok(());
    }
    let start = Instant::now();
    say(&format!(
        "building {} {} from source: once, about {} with an empty Go cache; kept in {}",
        module.name,
        module.version,
        module.takes,
        home.display()
    ));
    let source = home.join("source").join(module.name);
    fs::create_dir_all(&source)?;
    for (name, content) in module.files {
        fs::write(source.join(name), content)?;
    }
    for (number, (program, package)) in module.packages.iter().enumerate() {
        let partial = home.join(format!("{program}.partial"));
        let mut command = Command::new(go);
        command
            .args(["build", "-mod=readonly", "-trimpath", "-ldflags", &flags(module), "-o"])
            .arg(&partial)
            .arg(package)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .env("GOWORK", "off")
            .env("GOCACHE", go_cache(home))
            .current_dir(&source)
            .stdin(Stdio::null());
        let status = command.status().with_context(|| go.display().to_string())?;
        ensure!(status.success(), "building {package}: {status}");
        fs::rename(&partial, home.join(program))?;
        let (done, all) = (number + 1, module.packages.len());
        say(&format!("  {program} ({done} of {all}), {:.0} s", start.elapsed().as_secs_f64()));
    }
    if !home.join(module.packages[0].0).is_file() {
        bail!("{} was built and is not there", module.packages[0].0);
    }
    Ok(())
}
