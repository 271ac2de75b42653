//! The resources that people write.
