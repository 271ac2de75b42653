//! One kind of rtnetlink message: an IPv6 address for the loopback device.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::socket::check;

/// Index of the loopback device in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The valid lifetime; the preferred one is zero, which deprecates the address.
const FOREVER: u32 = u32::MAX;

#[repr(C)]
struct Request {
    header: libc::nlmsghdr,
    // struct ifaddrmsg
    family: u8,
    prefix_len: u8,
    flags: u8,
    scope: u8,
    index: u32,
    // IFA_LOCAL
    local_len: u16,
    local_type: u16,
    local: [u8; 16],
    // IFA_CACHEINFO: preferred and valid lifetime, creation and update stamp
    cache_len: u16,
    cache_type: u16,
    cache: [u32; 4],
}

/// Adds `addrs` to the loopback device of the calling thread's namespace. They are deprecated from
/// the start, so that the kernel never picks one as a source by itself. That one is there already
/// is no error.
pub(crate) fn add_loopback_addrs(addrs: impl Iterator<Item = Ipv6Addr>) -> io::Result<()> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    check(fd)?;
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for addr in addrs {
        add(&socket, addr)?;
    }
    Ok(())
}

fn add(socket: &OwnedFd, addr: Ipv6Addr) -> io::Result<()> {
    let request = Request {
        header: libc::nlmsghdr {
            nlmsg_len: size_of::<Request>() as u32,
            nlmsg_type: libc::RTM_NEWADDR,
            nlmsg_flags: (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE) as u16,
            nlmsg_seq: 1,
            nlmsg_pid: 0,
        },
        family: libc::AF_INET6 as u8,
        prefix_len: 128,
        flags: libc::IFA_F_NODAD as u8,
        scope: 0,
        index: LOOPBACK_INDEX,
        local_len: 4 + 16,
        local_type: libc::IFA_LOCAL,
        local: addr.octets(),
        cache_len: 4 + 16,
        cache_type: libc::IFA_CACHEINFO,
        cache: [0, FOREVER, 0, 0],
    };
    // SAFETY: a live message, and its size is given.
    let sent = unsafe {
        libc::send(socket.as_raw_fd(), std::ptr::from_ref(&request).cast(), size_of::<Request>(), 0)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // The answer: a header and the error number, zero for success.
    let mut answer = [0_u8; 256];
    // SAFETY: room of the size given.
    let got =
        unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let error = usize::try_from(got)
        .ok()
        .and_then(|got| answer.get(..got))
        .and_then(|answer| answer.get(16..20))
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) if error == -libc::EEXIST => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("no answer from rtnetlink")),
    }
}
