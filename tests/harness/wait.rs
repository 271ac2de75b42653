//! Waiting for what takes a moment.

pub use fairlead_cluster::system::eventually;
