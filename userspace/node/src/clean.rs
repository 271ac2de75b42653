//! `--clean`: the node as it was before the first daemon, for uninstalling and test beds.
//!
//! The end of a daemon leaves kernel programs, pins and state where they are, on purpose: enrolled
//! pods are refused until the next one. This takes them away, and the pods are outside the mesh.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cni::Assigned;
use crate::open;
use crate::settings::{Settings, Source};

/// What the daemon keeps in its state directory.
const KEPT: [&str; 4] =
    ["configuration.state", "configuration.state.refused", "identities", ".lock"];

/// Takes away what daemons left on this node.
#[must_use]
pub fn run(settings: &Settings) -> ExitCode {
    match take_away(settings) {
        Ok(true) => {
            eprintln!("fairlead-node: no pod of this node is captured any more");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            eprintln!("fairlead-node: there was nothing to take away");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fairlead-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn take_away(settings: &Settings) -> anyhow::Result<bool> {
    // A daemon that runs would lose what it stands on.
    let _admin = open::listener(settings.admin, "admin", "--admin")
        .context("a daemon runs here: end it first")?;
    let pins = &settings.capture.pin_dir;
    let mut found = fairlead_capture::clean(pins)
        .with_context(|| format!("detaching what is pinned below {}", pins.display()))?;
    if let Source::Controller(controller) = &settings.source {
        for name in KEPT {
            found |= remove(&controller.state_dir.join(name))?;
        }
    }
    if let Some(pods) = &settings.pods {
        found |= remove(&pods.cni_socket)?;
        found |= remove(&Assigned::file_beside(&pods.cni_socket))?;
    }
    Ok(found)
}

/// Removes a file or a directory; false if there is none.
fn remove(path: &Path) -> anyhow::Result<bool> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_nothing() {
        let dir = std::env::temp_dir().join(format!("fairlead-clean-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("identities/a")).expect("a directory");
        std::fs::write(dir.join("configuration.state"), "x").expect("a file");
        for name in ["identities", "configuration.state"] {
            assert!(remove(&dir.join(name)).expect("removing"));
            assert!(!remove(&dir.join(name)).expect("nothing there"));
        }
        std::fs::remove_dir(&dir).expect("empty");
    }
}
