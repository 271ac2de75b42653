//! The words that every crate of Fairlead shares: newtyped addresses (so that swapping two of
//! them is a type error), identities, protocols, response flags, and the ports through which the
//! data plane reaches the kernel without knowing eBPF.
//!
//! No I/O and no runtime here; everything above depends on this crate, and it on nothing.

mod addr;
mod flags;
mod identity;
mod ports;
mod protocol;
mod workload;

pub use addr::{ClientAddr, NetnsCookie, OriginalDst};
pub use flags::{Refusal, ResponseFlags};
pub use identity::{IdentityError, SpiffeId, TrustDomain};
pub use ports::{FlowMiss, PodPort, PodSockets};
pub use protocol::AppProtocol;
pub use workload::{Labels, WorkloadId};
