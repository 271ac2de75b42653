//! The API server's objects, trimmed to what nodes read.

pub mod raw;
pub mod trim;
