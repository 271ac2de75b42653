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

/// Drops everything but `keep` from the effective, permitted, inheritable and bounding sets.
pub(crate) fn keep_only(keep: &[u32]) -> io::Result<()> {
    for cap in (0..=LAST_CAP).filter(|cap| !keep.contains(cap)) {
        // SAFETY: no pointers. Numbers that the kernel does not know fail, which is as good.
        let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) };
        if ret < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return Err(io::Error::last_os_error());
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
