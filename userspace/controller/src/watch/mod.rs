//! The API server's objects, trimmed to what nodes read.
