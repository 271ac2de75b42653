//! Files of the CA directory: private, written atomically.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::CaError;

/// Larger files are no PEM of a CA; reading them would only fill memory.
const MAX_FILE: u64 = 1 << 20;

pub(super) fn error(path: &Path, e: impl ToString) -> CaError {
    CaError::File { path: path.into(), message: e.to_string() }
}

pub(super) fn make_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| error(dir, e))
}

/// Takes the directory's lock, waiting for another daemon that makes or reads the CA at this
/// moment; given back when the file is dropped, or by the kernel when the process dies.
pub(super) fn lock(dir: &Path) -> Result<File, CaError> {
    let path = dir.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| error(&path, e))?;
    file.lock().map_err(|e| error(&path, e))?;
    Ok(file)
}

/// Reads a file as text.
pub(super) fn read(path: &Path) -> Result<String, CaError> {
    let size = fs::metadata(path).map_err(|e| error(path, e))?.len();
    if size > MAX_FILE {
        return Err(error(path, format!("{size} bytes; a CA file has at most {MAX_FILE}")));
    }
    fs::read_to_string(path).map_err(|e| error(path, e))
}

/// Writes `text` readable by the owner alone: to a temporary file, synced, renamed.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CaError> {
    let temporary = temporary(path);
    let result = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        // An existing temporary file of an interrupted run keeps its old mode otherwise.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    result.map_err(|e| error(path, e))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Whether others than the owner may read the file.
pub(super) fn readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o077 != 0)
}
