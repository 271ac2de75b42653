//! Resources to snapshot: validation, compilation, indices.
//!
//! The way of a change: a source (a directory, later the controller) hands upserted and removed
//! resources to [`compile::Compiler`], which keeps indices of everything and recompiles exactly
//! what depends on the change. The result is a [`model::Snapshot`] that shares every part that
//! did not change with the one before, published through a [`SnapshotHandle`].
#![forbid(unsafe_code)]

pub mod compile;
mod dump;
pub mod enrolment;
mod handle;
pub mod model;
pub mod source;

pub use dump::dump;
pub use handle::{SnapshotHandle, Subscription};
