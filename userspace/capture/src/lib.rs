//! Capture: the traffic of enrolled pods comes to the daemon, with its original destination and
//! its source intact, and nothing gets around it.
//!
//! [`Capture::open`] loads the eBPF programs and attaches them below a cgroup;
//! [`Capture::enroll`] hands out the listening sockets of one pod and the way into its network
//! namespace ([`fairlead_types::PodSockets`]). Programs, maps and links are pinned: when the
//! daemon dies, the kernel refuses the connections of enrolled pods until a daemon takes over.
//!
//! The only crate of userspace with `unsafe`; it is confined to `sys`.

mod addr;
mod attempt;
mod capture;
mod clean;
mod diagnostics;
mod enroll;
mod error;
mod features;
#[doc(hidden)]
pub mod fuzz;
mod listeners;
mod maps;
mod place;
mod port;
mod programs;
mod settings;
mod sweep;
#[expect(unsafe_code, reason = "system calls that the standard library does not offer")]
mod sys;

pub use attempt::{Attempt, attempt};
pub use capture::Capture;
pub use clean::clean;
pub use enroll::{netns_addresses, netns_cookie};
pub use error::CaptureError;
pub use fairlead_abi::{ABI_VERSION, Counter};
pub use features::{Feature, drop_capabilities, features};
pub use place::cgroup2_root;
pub use settings::{
    CaptureSettings, DEFAULT_LISTEN_BACKLOG, DEFAULT_MAX_FLOWS, DEFAULT_PIN_DIR, Leaving, PodSpec,
    UnknownNetns,
};
pub use sys::memory::give_back_memory;
pub use sys::mount::{is_bpffs, is_cgroup2};
