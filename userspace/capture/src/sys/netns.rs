//! Network namespaces: open, tell apart, and step into for a moment.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;

use fairlead_types::NetnsCookie;

use super::socket;

/// An open network namespace. It stays alive as long as this does.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    cookie: NetnsCookie,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/x`, `/proc/1234/ns/net`).
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let cookie = within(file.as_fd(), socket::netns_cookie)??;
        Ok(Self { file, cookie: NetnsCookie(cookie) })
    }

    pub(crate) fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `f` in this namespace on the calling thread, and comes back. `f` must not block on the
    /// network: the thread serves others too.
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        within(self.fd(), f)
    }
}

/// The namespace in which the process was started: where every thread belongs.
fn home() -> io::Result<BorrowedFd<'static>> {
    static HOME: OnceLock<File> = OnceLock::new();
    if HOME.get().is_none() {
        // The main thread never leaves its namespace, unlike the calling thread in a test.
        let file = File::open("/proc/self/ns/net")?;
        let _ = HOME.set(file);
    }
    HOME.get().map(AsFd::as_fd).ok_or_else(|| io::Error::other("the own namespace is not open"))
}

/// Brings the thread home, whatever happens in between.
struct Return(BorrowedFd<'static>);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0) {
            // A thread that stays in a pod's namespace would open other pods' sockets there:
            // traffic under a wrong identity. Nothing that can be done after that is safe.
            tracing::error!(%error, "cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}

fn enter(ns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open; it changes this thread only.
    if unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn within<T>(ns: BorrowedFd<'_>, f: impl FnOnce() -> T) -> io::Result<T> {
    let home = home()?;
    enter(ns)?;
    let _return = Return(home);
    Ok(f())
}
