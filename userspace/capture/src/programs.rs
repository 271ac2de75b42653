//! Loads the eBPF programs, attaches them, and replaces running ones.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use aya::programs::{CgroupSock, CgroupSockAddr, ProgramError, ProgramFd, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
use fairlead_abi::POD_PLACEHOLDER;
use fairlead_types::NetnsCookie;

use crate::diagnostics::ToTracing;
use crate::error::{CaptureError, Step};
use crate::maps::{PINNED_MAPS, PinDir};
use crate::settings::CaptureSettings;
use crate::sys::bpf::{self, AttachType};

/// The object, part of this binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.bpf.o"));

/// The hooks at the cgroup root, in the order in which they are attached: what shows addresses
/// comes before what redirects, so that no application sees the daemon's address.
pub(crate) const HOOKS: &[(&str, AttachType)] = &[
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("getsockname4", AttachType::Getsockname4),
    ("getsockname6", AttachType::Getsockname6),
    ("flow", AttachType::SockOps),
    ("sock_create", AttachType::SockCreate),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];

/// Highest level that the programs may log at; 0 compiles the logging away in the kernel.
static LOG_OFF: u8 = 0;
static LOG_DEBUG: u8 = 4;

/// How often the kernel is asked to load a program, as libbpf does.
const LOAD_ATTEMPTS: u32 = 5;

const PLACEHOLDER: [u8; POD_LEN] = POD_PLACEHOLDER.to_ne_bytes();
const POD_LEN: usize = size_of::<u64>();
/// What an ELF64 file is aligned to.
const OBJECT_ALIGN: usize = 8;

/// A copy of the object that can be changed. The ELF reader wants it aligned, which a `Vec<u8>`
/// does not promise: it has room to begin where it suits.
struct ObjectCopy {
    buffer: Vec<u8>,
    start: usize,
}

impl ObjectCopy {
    fn new() -> Self {
        let mut buffer = vec![0; OBJECT.len() + OBJECT_ALIGN];
        let start = buffer.as_ptr().align_offset(OBJECT_ALIGN).min(OBJECT_ALIGN);
        if let Some(place) = buffer.get_mut(start..start + OBJECT.len()) {
            place.copy_from_slice(OBJECT);
        }
        Self { buffer, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start..self.start + OBJECT.len()).unwrap_or_default()
    }
}

/// Makes programs from the object. One for all loads: aya's loader parses the kernel's type
/// information when it is made, which takes fifty times as long as a load, and which is not used.
#[derive(Debug)]
pub(crate) struct Loading {
    pub(crate) pins: PinDir,
    loader: Mutex<EbpfLoader<'static>>,
    diagnostics: bool,
    /// Where the object has the cookie that `steer` serves.
    pod_at: usize,
}

impl Loading {
    pub(crate) fn new(pins: PinDir, settings: &CaptureSettings) -> Result<Self, CaptureError> {
        let mut places =
            OBJECT.windows(POD_LEN).enumerate().filter(|(_, bytes)| **bytes == PLACEHOLDER);
        let (Some((pod_at, _)), None) = (places.next(), places.next()) else {
            return Err(CaptureError::Load("the object has no one place for a cookie".into()));
        };
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .verifier_log_level(VerifierLogLevel::STATS)
            .map_max_entries("FLOWS", settings.max_flows)
            .map_max_entries("CLIENTS", settings.max_flows)
            .override_global(
                "AYA_LOG_LEVEL",
                if settings.diagnostics { &LOG_DEBUG } else { &LOG_OFF },
                true,
            );
        for name in PINNED_MAPS {
            loader.map_pin_path(name, pins.maps().join(name));
        }
        let diagnostics = settings.diagnostics;
        Ok(Self { pins, loader: Mutex::new(loader), diagnostics, pod_at })
    }

    /// Parses the object, makes or opens its maps, and leaves its programs ready to load; `steer`
    /// will serve `pod`.
    fn object(&self, pod: Option<NetnsCookie>) -> Result<Ebpf, CaptureError> {
        let mut object = ObjectCopy::new();
        if let (Some(pod), Some(place)) =
            (pod, object.bytes().get_mut(self.pod_at..self.pod_at + POD_LEN))
        {
            place.copy_from_slice(&pod.0.to_ne_bytes());
        }
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        loader.load(object.bytes()).map_err(|error| CaptureError::Load(chain(&error)))
    }

    /// Tells apart what this object, loaded like this, would be from anything else, so that a pod's
    /// program is not loaded again when a daemon of the same build takes over. Never zero.
    pub(crate) fn build(&self) -> u64 {
        static DIGEST: LazyLock<u64> = LazyLock::new(|| {
            let mut hasher = DefaultHasher::new();
            OBJECT.hash(&mut hasher);
            hasher.finish()
        });
        (*DIGEST & !3) | 2 | u64::from(self.diagnostics)
    }

    /// Loads the programs of the cgroup hooks.
    pub(crate) fn hooks(&self) -> Result<Hooks, CaptureError> {
        let mut ebpf = self.object(None)?;
        for (name, _) in HOOKS {
            let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
            undisturbed(|| load(program))
                .map_err(|error| CaptureError::Load(format!("{name}: {}", chain(&error))))?;
        }
        Ok(Hooks { ebpf })
    }

    /// Loads the instance of `steer` that serves one pod.
    pub(crate) fn steer(&self, pod: NetnsCookie) -> Result<ProgramFd, CaptureError> {
        const NAME: &str = "steer";
        let mut ebpf = self.object(Some(pod))?;
        let program: &mut SkLookup = ebpf
            .program_mut(NAME)
            .ok_or_else(|| missing(NAME))?
            .try_into()
            .map_err(|error| CaptureError::Load(chain(&error)))?;
        undisturbed(|| program.load())
            .map_err(|error| CaptureError::Load(format!("{NAME}: {}", chain(&error))))?;
        program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| CaptureError::Load(chain(&error)))
    }
}

/// The loaded programs of the cgroup hooks.
#[derive(Debug)]
pub(crate) struct Hooks {
    ebpf: Ebpf,
}

impl Hooks {
    pub(crate) fn fd(&self, name: &str) -> Result<&ProgramFd, CaptureError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        program.fd().map_err(|error| CaptureError::Load(chain(&error)))
    }

    /// The reader of what the programs log.
    pub(crate) fn logger(&mut self) -> Result<EbpfLogger<ToTracing>, CaptureError> {
        EbpfLogger::init_with_logger(&mut self.ebpf, ToTracing)
            .map_err(|error| CaptureError::Load(format!("diagnostics: {}", chain(&error))))
    }

    /// Pins the programs, for people who look; the links hold them anyway.
    pub(crate) fn pin(&self, dir: &Path) -> Result<(), CaptureError> {
        for (name, _) in HOOKS {
            let path = dir.join(name);
            remove_pin(&path).step(|| format!("replacing {}", path.display()))?;
            bpf::pin(self.fd(name)?.as_fd(), &path)
                .step(|| format!("pinning {}", path.display()))?;
        }
        Ok(())
    }

    /// Attaches all hooks to `cgroup`, or makes these the programs of what is attached already.
    pub(crate) fn attach(&self, cgroup: &File, links: &Path) -> Result<(), CaptureError> {
        for (name, attach_type) in HOOKS {
            let target = Target::Cgroup(cgroup);
            put(self.fd(name)?.as_fd(), target, *attach_type, &links.join(name))
                .step(|| format!("attaching {name}"))?;
        }
        Ok(())
    }
}

/// Makes `program` the one that runs at `target` through the link pinned at `path`. There is no
/// moment without a program: a live link gets the new program in place; one that the kernel has
/// cut off (its target is gone), or that is attached elsewhere, goes after the new one is there.
pub(crate) fn put(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    path: &Path,
) -> io::Result<()> {
    let old = match bpf::get_pinned(path) {
        Ok(link) => Some(link),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(link) = &old
        && target.is_of(link.as_fd())?
    {
        match bpf::link_update(link.as_fd(), program) {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            result => return result,
        }
    }
    let link: OwnedFd = bpf::link_create(program, target.fd(), attach_type)?;
    take_away(path)?;
    bpf::pin(link.as_fd(), path)
}

/// What programs are attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A cgroup's directory.
    Cgroup(&'a File),
    /// A network namespace; the path of its link is its own.
    Netns(BorrowedFd<'a>),
}

impl Target<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Cgroup(dir) => dir.as_fd(),
            Self::Netns(fd) => *fd,
        }
    }

    /// Whether `link` is attached here.
    fn is_of(&self, link: BorrowedFd<'_>) -> io::Result<bool> {
        match self {
            Self::Cgroup(dir) => Ok(bpf::link_cgroup(link)? == dir.metadata()?.ino()),
            Self::Netns(_) => Ok(true),
        }
    }
}

/// Detaches the link pinned at `path` and removes the pin; that there is none is fine.
pub(crate) fn take_away(path: &Path) -> io::Result<()> {
    match bpf::get_pinned(path) {
        Ok(link) => match bpf::link_detach(link.as_fd()) {
            // Its target is gone already, or it is no link.
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::EOPNOTSUPP)) =>
            {
                return Err(error);
            }
            _ => {}
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    remove_pin(path)
}

/// Removes a pin; that there is none is fine.
pub(crate) fn remove_pin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Loads a program again if the kernel gave up on verifying it because a signal came (`EAGAIN` of
/// `BPF_PROG_LOAD`).
fn undisturbed(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut left = LOAD_ATTEMPTS;
    loop {
        left -= 1;
        match load() {
            Err(ProgramError::LoadError { io_error, .. } | ProgramError::IOError(io_error))
                if left > 0 && io_error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

fn load(program: &mut aya::programs::Program) -> Result<(), ProgramError> {
    use aya::programs::Program;
    match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::SockOps(program) => SockOps::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn missing(name: &str) -> CaptureError {
    CaptureError::Load(format!("the object has no program {name}"))
}

/// An error with its causes, on one line each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_a_signal_ended_is_tried_again_and_no_other() {
        let tries = |failures: u32, kind: io::ErrorKind| {
            let mut tries = 0;
            let result = undisturbed(|| {
                tries += 1;
                if tries > failures { Ok(()) } else { Err(ProgramError::IOError(kind.into())) }
            });
            (tries, result.is_ok())
        };
        assert_eq!(tries(2, io::ErrorKind::WouldBlock), (3, true));
        assert_eq!(tries(u32::MAX, io::ErrorKind::WouldBlock), (LOAD_ATTEMPTS, false));
        assert_eq!(tries(2, io::ErrorKind::PermissionDenied), (1, false));
    }
}
