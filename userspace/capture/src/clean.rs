//! Removes what an interrupted daemon left.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{CaptureError, Step};
use crate::maps::PinDir;
use crate::programs;

/// Detaches every program whose link is pinned below `pin_dir`, and removes all pins there. Pods are
/// no longer captured then: for test beds and uninstalling, never for a restart. True if there was
/// something.
///
/// # Errors
/// A pin cannot be removed.
pub fn clean(pin_dir: &Path) -> Result<bool, CaptureError> {
    let pins = PinDir(pin_dir.into());
    // Pods first: while the hooks are attached, nothing of theirs escapes half-way.
    for dir in [pins.steer(), pins.links()] {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.step(|| format!("listing {}", dir.display()))?.path();
            programs::take_away(&path).step(|| format!("detaching {}", path.display()))?;
        }
    }
    match fs::remove_dir_all(pin_dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).step(|| format!("removing {}", pin_dir.display())),
    }
}
