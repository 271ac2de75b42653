//! Removes what an interrupted daemon left.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{CaptureError, Step};

/// Removes all pins below `pin_dir`, and so detaches every program that only they hold. Pods are
/// no longer captured then: for test beds and uninstalling, never for a restart. True if there was
/// something.
///
/// # Errors
/// A pin cannot be removed.
pub fn clean(pin_dir: &Path) -> Result<bool, CaptureError> {
    match fs::remove_dir_all(pin_dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).step(|| format!("removing {}", pin_dir.display())),
    }
}
