//! File systems: is this a bpffs, a cgroup v2 tree, and mounting the former.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::socket::check;

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// Whether `path` lies on a bpffs.
///
/// # Errors
/// It cannot be looked at.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(magic(path)? == BPF_FS_MAGIC)
}

/// Whether `path` lies in a cgroup v2 tree.
///
/// # Errors
/// It cannot be looked at.
pub fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(magic(path)? == CGROUP2_SUPER_MAGIC)
}

fn magic(path: &Path) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all-zero bytes are a valid result to overwrite.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and room for the result.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut stat) })?;
    Ok(stat.f_type)
}

/// Mounts a bpffs on `path`.
pub(crate) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: valid C strings; this file system takes no data.
    check(unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    })
}

/// Takes the lock on the directory behind `fd`, for as long as it is open; false if another
/// process has it.
pub(crate) fn try_lock(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    match check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
