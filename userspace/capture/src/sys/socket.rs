//! TCP sockets made by hand: non-blocking from birth and bound before they are anything else.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `SO_NETNS_COOKIE`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A non-blocking, close-on-exec TCP socket of the family of `like`.
pub(crate) fn tcp(like: &IpAddr) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option that takes an int.
pub(crate) fn set_int(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option value is a live int, and its size is given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// Binds to `addr`.
pub(crate) fn bind(socket: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V4(v4) => {
            let sa = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            bind_raw(socket, &sa)
        }
        SocketAddr::V6(v6) => {
            let sa = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            bind_raw(socket, &sa)
        }
    }
}

fn bind_raw<T>(socket: BorrowedFd<'_>, sa: &T) -> io::Result<()> {
    // SAFETY: a live socket address, and its size is given.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(sa).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

/// A listener on the loopback address of a family, on `port`, or on one that the kernel chooses.
pub(crate) fn listen_on_loopback(v6: bool, port: u16, backlog: i32) -> io::Result<TcpListener> {
    use std::os::fd::AsFd;
    let ip = if v6 { Ipv6Addr::LOCALHOST.into() } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let socket = tcp(&ip)?;
    if v6 {
        set_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(socket.as_fd(), SocketAddr::new(ip, port))?;
    // Connections that are accepted here have the port of the pod's application: without this, it
    // could not bind its port while there is one. After bind(): a port of our own is shared with
    // nobody.
    set_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(TcpListener::from(socket))
}

/// The cookie of the calling thread's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    use std::os::fd::AsFd;
    let socket = tcp(&IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        .or_else(|_| tcp(&IpAddr::V6(Ipv6Addr::UNSPECIFIED)))?;
    get_u64(socket.as_fd(), SO_NETNS_COOKIE)
}

fn get_u64(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut value = MaybeUninit::<u64>::zeroed();
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: room for eight bytes, and its size is given.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    // SAFETY: zeroed to begin with, so always initialised.
    Ok(unsafe { value.assume_init() })
}

/// Sets the loopback device of the calling thread's namespace up, if it is not.
pub(crate) fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsFd;
    let socket = tcp(&IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        .or_else(|_| tcp(&IpAddr::V6(Ipv6Addr::UNSPECIFIED)))?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: a live request of the size that both calls expect.
    check(unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) })?;
    let up = libc::IFF_UP as libc::c_short;
    // SAFETY: the call has written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request) })
}

pub(crate) fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
