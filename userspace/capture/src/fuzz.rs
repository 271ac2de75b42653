//! What the fuzz targets reach of the private parsers of this crate. No part of the API.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use fairlead_abi::Addr;

use crate::{addr, place};

/// The cgroup v2 root of a `/proc/self/mountinfo`.
#[must_use]
pub fn cgroup2_root(mountinfo: &str) -> Option<PathBuf> {
    place::parse_cgroup2_root(mountinfo)
}

/// The slots of a list of CPUs.
#[must_use]
pub fn cpus(list: &str) -> Option<usize> {
    place::parse_cpus(list)
}

/// An address in the maps' form.
#[must_use]
pub fn to_abi(ip: IpAddr) -> Addr {
    addr::to_abi(ip)
}

/// And back.
#[must_use]
pub fn from_abi(addr: &Addr, port: u16) -> SocketAddr {
    addr::from_abi(addr, port)
}

/// The `n`th delivery source of the family of `like`.
#[must_use]
pub fn delivery_source(like: &IpAddr, n: u32) -> IpAddr {
    addr::delivery_source(like, n)
}
