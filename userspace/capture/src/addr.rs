//! Addresses between Rust's form and the maps'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fairlead_abi::Addr;

/// The maps' form; IPv4 becomes IPv4-mapped.
pub(crate) fn to_abi(ip: IpAddr) -> Addr {
    let v6 = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let o = v6.octets();
    let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// Rust's form; IPv4-mapped becomes IPv4.
pub(crate) fn from_abi(addr: &Addr, port: u16) -> SocketAddr {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(addr) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(), port)
}

/// The `n`th delivery source of the family of `like`.
pub(crate) fn delivery_source(like: &IpAddr, n: u32) -> IpAddr {
    let n = n % fairlead_abi::DELIVERY_SOURCES;
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(fairlead_abi::DELIVERY_FIRST_V4 + n).into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::from(fairlead_abi::DELIVERY_FIRST_V6 + n)).into(),
    }
}

/// All IPv6 addresses that the loopback of a pod with IPv6 needs: sources of deliveries and of
/// captured connections.
pub(crate) fn loopback_sources() -> impl Iterator<Item = Ipv6Addr> {
    let delivery = (0..fairlead_abi::DELIVERY_SOURCES).map(|n| fairlead_abi::DELIVERY_FIRST_V6 + n);
    let capture = (0..fairlead_abi::CAPTURE_SOURCES).map(|n| fairlead_abi::CAPTURE_FIRST_V6 + n);
    delivery.chain(capture).map(|last| Ipv6Addr::from(u128::from(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for text in ["10.1.2.3:80", "[2001:db8::1]:443", "[::1]:1", "255.255.255.255:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(from_abi(&to_abi(addr.ip()), addr.port()), addr);
        }
        assert_eq!(
            from_abi(&to_abi("::ffff:10.0.0.1".parse().unwrap()), 5),
            "10.0.0.1:5".parse().unwrap()
        );
    }

    #[test]
    fn classes() {
        let abi = |text: &str| to_abi(text.parse().unwrap());
        for text in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            assert!(fairlead_abi::is_loopback(&abi(text)), "{text}");
        }
        for text in ["128.0.0.1", "10.0.0.127", "::2", "2001:db8::1", "::7f00:1", "fe80::1"] {
            assert!(!fairlead_abi::is_loopback(&abi(text)), "{text}");
        }
        for text in ["127.0.0.6", "127.0.0.9", "::6", "::9"] {
            assert!(fairlead_abi::is_delivery_source(&abi(text)), "{text}");
        }
        for text in ["127.0.0.5", "127.0.0.10", "::5", "::a", "::1", "0.0.0.6", "2001:db8::6"] {
            assert!(!fairlead_abi::is_delivery_source(&abi(text)), "{text}");
        }
        for text in ["127.0.0.10", "127.0.0.13", "::a", "::d"] {
            assert!(fairlead_abi::is_capture_source(&abi(text)), "{text}");
            assert!(!fairlead_abi::is_delivery_source(&abi(text)), "{text}");
        }
        for text in ["127.0.0.14", "127.0.0.1", "::e", "::1", "2001:db8::a"] {
            assert!(!fairlead_abi::is_capture_source(&abi(text)), "{text}");
        }
        for source in loopback_sources().map(|ip| to_abi(ip.into())) {
            assert!(
                fairlead_abi::is_delivery_source(&source)
                    != fairlead_abi::is_capture_source(&source)
            );
        }
        for n in 0..9 {
            for like in ["1.2.3.4", "2001:db8::1"] {
                let source = delivery_source(&like.parse().unwrap(), n);
                assert!(fairlead_abi::is_delivery_source(&to_abi(source)), "{source}");
            }
        }
    }
}
