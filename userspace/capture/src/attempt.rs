//! Whether the hooks can be attached here, tried out where nobody is: in a cgroup and a pin
//! directory of their own, which are gone afterwards.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use crate::error::{CaptureError, Step};
use crate::maps::PinDir;
use crate::place;
use crate::programs::{HOOKS, Loading};
use crate::settings::CaptureSettings;
use crate::sys::bpf;

/// What became of one hook.
#[derive(Debug)]
pub struct Attempt {
    /// The hook.
    pub hook: &'static str,
    /// Why it could not be attached.
    pub failure: Option<String>,
}

/// Removes what the attempt made.
struct Traces {
    cgroup: PathBuf,
    pins: PathBuf,
}

impl Drop for Traces {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.cgroup);
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// Loads the programs and attaches each of the cgroup's hooks to a new cgroup below the one that the
/// settings name. Needs the rights that the daemon needs.
///
/// # Errors
/// The programs cannot be loaded at all, or there is no place to try.
pub fn attempt(settings: &CaptureSettings) -> Result<Vec<Attempt>, CaptureError> {
    let number = std::process::id();
    let name = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-check-{number}"));
        PathBuf::from(name)
    };
    let traces = Traces {
        cgroup: settings.cgroup_root.join(format!("fairlead-check-{number}")),
        pins: name(&settings.pin_dir),
    };
    let pins = PinDir(traces.pins.clone());
    place::make_pin_dir(&pins.0)?;
    fs::create_dir_all(pins.maps()).step(|| format!("making {}", pins.maps().display()))?;
    fs::create_dir(&traces.cgroup).step(|| format!("making {}", traces.cgroup.display()))?;
    let cgroup =
        File::open(&traces.cgroup).step(|| format!("opening {}", traces.cgroup.display()))?;
    let hooks = Loading::new(pins, settings)?.hooks()?;
    HOOKS
        .iter()
        .map(|(hook, attach_type)| {
            let program = hooks.fd(hook)?;
            let link = bpf::link_create(program.as_fd(), cgroup.as_fd(), *attach_type);
            Ok(Attempt { hook, failure: link.err().map(|error| error.to_string()) })
        })
        .collect()
}
