//! Addresses in the form that both sides use, and the addresses that have a meaning of their own.

/// An address in IPv6 form, as the four words that lie in memory (network byte order), so that the
/// eBPF programs move it word by word.
pub type Addr = [u32; 4];

/// The third word of an IPv4 address in IPv6 form.
pub const MAPPED_WORD: u32 = 0xffff_u32.to_be();

/// Delivery sources per family. Several, because one source has only an ephemeral range of ports
/// towards one destination.
pub const DELIVERY_SOURCES: u32 = 4;

/// The IPv4 sources from which the daemon delivers inbound connections to the application begin
/// here: `127.0.0.6` to `127.0.0.9` (host byte order).
pub const DELIVERY_FIRST_V4: u32 = 0x7f00_0006;

/// The IPv6 sources begin here: `::6` to `::9` (the last word, host byte order).
pub const DELIVERY_FIRST_V6: u32 = 6;

/// Captured connections to the daemon's listener come from `127.0.0.10` to `127.0.0.13` in turn
/// (host byte order), because from one address there is only an ephemeral range of them.
pub const CAPTURE_FIRST_V4: u32 = 0x7f00_000a;

/// The IPv6 sources begin here: `::a` to `::d` (the last word, host byte order).
pub const CAPTURE_FIRST_V6: u32 = 0xa;

/// Sources of captured connections per family; a power of two.
pub const CAPTURE_SOURCES: u32 = 4;

/// The IPv6 form of an IPv4 address given as it lies in memory.
#[must_use]
#[inline(always)]
pub const fn mapped(v4: u32) -> Addr {
    [0, 0, MAPPED_WORD, v4]
}

/// Whether the address is the IPv6 form of an IPv4 address.
#[must_use]
#[inline(always)]
pub const fn is_mapped(addr: &Addr) -> bool {
    addr[0] | addr[1] == 0 && addr[2] == MAPPED_WORD
}

/// Whether the address is loopback: `127.0.0.0/8`, `::1`, or unspecified, which `connect()` takes
/// for loopback.
#[must_use]
#[inline(always)]
pub const fn is_loopback(addr: &Addr) -> bool {
    if addr[0] | addr[1] != 0 {
        return false;
    }
    let last = u32::from_be(addr[3]);
    (addr[2] == MAPPED_WORD && (last >> 24 == 127 || last == 0)) || (addr[2] == 0 && last <= 1)
}

/// Whether the address is a source of deliveries, in either family.
#[must_use]
#[inline(always)]
pub const fn is_delivery_source(addr: &Addr) -> bool {
    is_among(addr, DELIVERY_FIRST_V4, DELIVERY_FIRST_V6, DELIVERY_SOURCES)
}

/// Whether the address is a source that capture gives to connections, in either family.
#[must_use]
#[inline(always)]
pub const fn is_capture_source(addr: &Addr) -> bool {
    is_among(addr, CAPTURE_FIRST_V4, CAPTURE_FIRST_V6, CAPTURE_SOURCES)
}

#[inline(always)]
const fn is_among(addr: &Addr, first_v4: u32, first_v6: u32, count: u32) -> bool {
    if addr[0] | addr[1] != 0 {
        return false;
    }
    let first = if addr[2] == MAPPED_WORD {
        first_v4
    } else if addr[2] == 0 {
        first_v6
    } else {
        return false;
    };
    u32::from_be(addr[3]).wrapping_sub(first) < count
}
