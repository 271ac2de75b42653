//! Where the daemon runs and where its pins lie: both are checked before anything is attached.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{CaptureError, Step};
use crate::settings::CaptureSettings;
use crate::sys::mount;

/// Where a bpffs is mounted by custom, and by us if nothing is.
const BPFFS: &str = "/sys/fs/bpf";
/// How long an earlier daemon may take to let go of the pins.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The root of the cgroup v2 tree that this process sees, from `/proc/self/mountinfo`.
///
/// # Errors
/// There is none, or `/proc` cannot be read.
pub fn cgroup2_root() -> Result<PathBuf, CaptureError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").step(|| "reading mountinfo".into())?;
    parse_cgroup2_root(&mounts)
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .step(|| "looking for a cgroup v2 mount".into())
}

/// The mount point of the first cgroup v2 mount (proc(5): fields up to `-`, then the type).
pub(crate) fn parse_cgroup2_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| fields.split(' ').nth(4)).flatten().map(unescape)
    })
}

/// A path of mountinfo: space, tab, line feed and backslash are written in octal (`\040`).
fn unescape(text: &str) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (first, after),
        };
        path.push(byte);
        rest = after;
    }
    OsString::from_vec(path).into()
}

/// What kubelet calls the cgroup of all pods, with systemd and without.
const PODS_CGROUPS: &[&str] = &["kubepods.slice", "kubepods"];

/// The number of the cgroup of all pods, which is the inode of its directory.
pub(crate) fn pods_cgroup(settings: &CaptureSettings) -> Option<u64> {
    let number = |dir: &Path| {
        let is_cgroup = mount::is_cgroup2(dir).unwrap_or(false);
        is_cgroup.then(|| fs::metadata(dir).map(|m| m.ino()).ok()).flatten()
    };
    match &settings.pods_cgroup {
        Some(dir) => number(dir),
        None => PODS_CGROUPS.iter().find_map(|name| number(&settings.cgroup_root.join(name))),
    }
}

/// Checks that the calling thread, and so its sockets, live in `root` or below: the programs see
/// the daemon's deliveries only there.
pub(crate) fn below_cgroup(root: &Path) -> Result<(), CaptureError> {
    let is_cgroup = mount::is_cgroup2(root).step(|| format!("looking at {}", root.display()))?;
    if !is_cgroup {
        return Err(CaptureError::NotCgroup2(root.into()));
    }
    let text =
        fs::read_to_string("/proc/thread-self/cgroup").step(|| "reading the own cgroup".into())?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = cgroup2_root()?.join(path);
    let real =
        |path: &Path| fs::canonicalize(path).step(|| format!("resolving {}", path.display()));
    let (own, root) = (real(&own)?, real(root)?);
    if own.starts_with(&root) { Ok(()) } else { Err(CaptureError::OutsideCgroup { own, root }) }
}

/// Makes the pin directory, mounting a bpffs at its customary place if there is none.
pub(crate) fn make_pin_dir(dir: &Path) -> Result<(), CaptureError> {
    let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let is_bpffs =
        |path: &Path| mount::is_bpffs(path).step(|| format!("looking at {}", path.display()));
    if !is_bpffs(existing)? {
        if existing != Path::new(BPFFS) {
            return Err(CaptureError::NotBpffs(dir.into()));
        }
        mount::mount_bpffs(existing).step(|| format!("mounting a bpffs on {BPFFS}"))?;
        tracing::info!(
            "mounted a bpffs on {BPFFS}: there was none, and pins have to outlive the daemon"
        );
    }
    fs::create_dir_all(dir).step(|| format!("making {}", dir.display()))
}

/// Takes the pin directory for this process.
pub(crate) fn lock(dir: &Path) -> Result<File, CaptureError> {
    let file = File::open(dir).step(|| format!("opening {}", dir.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if mount::try_lock(file.as_fd()).step(|| format!("locking {}", dir.display()))? {
            return Ok(file);
        }
        if Instant::now() >= deadline {
            return Err(CaptureError::InUse(dir.into()));
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// CPUs that per-CPU maps have a slot for.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    parse_cpus(&fs::read_to_string("/sys/devices/system/cpu/possible")?)
        .ok_or_else(|| io::Error::other("/sys/devices/system/cpu/possible is not a list of CPUs"))
}

/// The number of slots for a list such as `0-3,8`: the highest number and one.
pub(crate) fn parse_cpus(list: &str) -> Option<usize> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<usize>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let text = "24 1 0:21 / /sys rw shared:1 - sysfs sysfs rw\n\
                    30 24 0:25 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_cgroup2_root(text), Some("/sys/fs/cgroup/unified".into()));
        let escaped = "30 24 0:25 / /mnt/a\\040b\\134c\\9 rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_cgroup2_root(escaped), Some("/mnt/a b\\c\\9".into()));
        assert_eq!(parse_cgroup2_root("24 1 0:21 / /sys rw - sysfs cgroup2 rw\n"), None);
    }

    #[test]
    fn cpus() {
        assert_eq!(parse_cpus("0\n"), Some(1));
        assert_eq!(parse_cpus("0-3\n"), Some(4));
        assert_eq!(parse_cpus("0-1,4-7"), Some(8));
        assert_eq!(parse_cpus(""), None);
    }
}
