//! The lease that says which replica writes.
