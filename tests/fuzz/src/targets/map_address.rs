//! Addresses and keys as the eBPF maps hold them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use fairlead_abi::{is_delivery_source, is_loopback, is_mapped, mapped, reservation};
use fairlead_capture::fuzz;

/// Every 16 bytes are an address that comes back the same; the classes that the programs tell
/// apart are those that the standard library knows.
pub fn run(data: &[u8]) {
    let Some((octets, rest)) = data.split_first_chunk::<16>() else { return };
    let port = rest.first_chunk::<2>().map_or(0, |bytes| u16::from_be_bytes(*bytes));
    let ip = Ipv6Addr::from(*octets);
    let abi = fuzz::to_abi(IpAddr::V6(ip));
    let canonical = IpAddr::V6(ip).to_canonical();
    assert_eq!(fuzz::from_abi(&abi, port), SocketAddr::new(canonical, port));
    assert_eq!(fuzz::to_abi(canonical), abi, "one form for both families");
    assert_eq!(is_mapped(&abi), canonical.is_ipv4());
    if let IpAddr::V4(v4) = canonical {
        assert_eq!(mapped(u32::from_ne_bytes(v4.octets())), abi);
    }
    let local = canonical.is_loopback() || canonical.is_unspecified();
    assert_eq!(is_loopback(&abi), local, "{canonical}");
    let source = match canonical {
        IpAddr::V4(v4) => matches!(v4.octets(), [127, 0, 0, 6..=9]),
        IpAddr::V6(v6) => matches!(v6.segments(), [0, 0, 0, 0, 0, 0, 0, 6..=9]),
    };
    assert_eq!(is_delivery_source(&abi), source, "{canonical}");
    let own = fuzz::delivery_source(&canonical, u32::from(port));
    assert!(own.is_ipv4() == canonical.is_ipv4() && is_delivery_source(&fuzz::to_abi(own)));

    if let Some(cookie) = octets.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes)) {
        let key = reservation(cookie);
        assert_eq!(key.netns, 0, "no namespace has it");
        let [low, high, ..] = key.addr;
        assert_eq!(u64::from(low) | u64::from(high) << 32, cookie, "no two share a place");
    }
}
