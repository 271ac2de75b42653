//! Capabilities of the calling thread.

use std::io;

use super::socket::check;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const LAST_CAP: u32 = 63;
const VERSION_3: u32 = 0x2008_0522;

/// What the daemon goes on needing.
pub(crate) const NEEDED: &[u32] = &[CAP_NET_ADMIN, CAP_SYS_ADMIN];
/// What it goes on needing besides, if it has to find pods below `/proc`.
pub(crate) const TO_FIND_PODS: &[u32] = &[CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops everything but `keep` from the effective, permitted, inheritable and bounding sets, and
/// gives up the right to gain any by starting a program.
///
/// The bounding set can be left as it is where it cannot be changed: a container without
/// `CAP_SETPCAP`. No program that is started gains anything of it.
pub(crate) fn keep_only(keep: &[u32]) -> io::Result<()> {
    // SAFETY: no pointers.
    let ret = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check(ret)?;
    for cap in (0..=LAST_CAP).filter(|cap| !keep.contains(cap)) {
        // SAFETY: no pointers. Numbers that the kernel does not know fail, which is as good.
        let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) };
        if ret < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINVAL) => {}
                Some(libc::EPERM) => break,
                _ => return Err(error),
            }
        }
    }
    let mut data = [Data::default(); 2];
    for cap in keep {
        if let Some(half) = data.get_mut((cap / 32) as usize) {
            half.effective |= 1 << (cap % 32);
            half.permitted |= 1 << (cap % 32);
        }
    }
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: version 3 reads two `Data`.
    let ret =
        unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) };
    check(i32::try_from(ret).map_err(io::Error::other)?)
}
