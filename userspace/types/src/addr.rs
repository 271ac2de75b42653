//! Socket addresses by role. A proxy handles four addresses per connection; mixing two of them up
//! is a security defect, so each role is a type of its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! address_role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The address with an IPv4-mapped IPv6 address written as IPv4.
            #[must_use]
            pub fn canonical(addr: SocketAddr) -> Self {
                Self(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            }

            /// The IP address.
            #[must_use]
            pub fn ip(&self) -> IpAddr {
                self.0.ip()
            }

            /// The port.
            #[must_use]
            pub fn port(&self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

address_role! {
    /// The address that the application asked for, before capture rewrote it.
    OriginalDst
}
address_role! {
    /// The address of the application socket that began the connection: what the server's
    /// `getpeername()` has to show.
    ClientAddr
}

/// The kernel's cookie of a network namespace (`SO_NETNS_COOKIE`): unique until reboot, never
/// reused, so a stale entry can never speak for a newer pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
