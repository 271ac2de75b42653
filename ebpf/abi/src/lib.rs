//! Map keys and values shared by kernel and userspace.
