//! The system calls that the standard library does not offer, each behind a safe function.

pub(crate) mod bpf;
pub(crate) mod caps;
pub(crate) mod clock;
pub(crate) mod ifaddrs;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod socket;
