//! What the controller said, on disk: with it the daemon starts while no controller answers.
//!
//! One file, a log of records (`format`), appended to as Updates come (`journal`), copied
//! without what is outdated when that has become much. Each record carries its SHA-256; each
//! Update ends with a commit that carries the time and a digest of all records so far. What is
//! behind the last commit was being written when the daemon died, and does not count. Anything
//! else that is wrong means that none of it counts: half of a mesh's policies are worse than none.
//!
//! The checksums find damage, not intent: who can write the file is root of this node.

mod format;
mod journal;
mod keeper;

pub(super) use format::{Identity, StateError, read, seal};
pub(super) use journal::Journal;
pub(super) use keeper::{Entry, Hold, Keeper};

#[cfg(test)]
mod tests;
