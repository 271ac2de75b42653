//! The addresses of a network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::socket::check;

/// Interfaces' addresses looked at.
const MAX_ADDRS: usize = 4096;

/// All addresses of interfaces other than the loopback device, in the calling thread's namespace.
pub(crate) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: room for one pointer.
    check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: `next` is null or an entry of the list, which lives until `freeifaddrs`.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if addresses.len() < MAX_ADDRS && entry.ifa_flags & libc::IFF_LOOPBACK.cast_unsigned() == 0
        {
            addresses.extend(address(entry.ifa_addr));
        }
    }
    // SAFETY: the list from above, once.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

fn address(sa: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null or a valid socket address, whose family says how large it is.
    unsafe {
        match libc::c_int::from(sa.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = sa.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = sa.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}
