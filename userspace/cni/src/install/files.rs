//! Files that a container runtime reads at any moment: each is replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file of a bounded size.
pub(super) fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("too long for a network configuration"));
    }
    fs::read_to_string(path)
}

/// Puts `contents` in the place of `path`, with the mode and owner of `like`, or `mode`. True if
/// there was something else.
pub(super) fn replace(
    path: &Path,
    contents: &[u8],
    like: Option<&Path>,
    mode: u32,
) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|there| there == contents) {
        return Ok(false);
    }
    let temporary = temporary(path);
    let written = write(&temporary, contents, like, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_dir(path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map(|()| true)
}

fn write(path: &Path, contents: &[u8], like: Option<&Path>, mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    let mut mode = mode;
    if let Some(like) = like.map(fs::metadata).transpose()? {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
        mode = like.mode() & 0o7777;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A name beside `path` that no runtime takes for a configuration.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.fairlead-tmp"))
}

/// Renames, and makes it last.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(to)
}

/// Removes a file; that there is none is fine. True if there was one.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
