//! Memory that the allocator holds and nobody uses.

/// Gives whole pages that nobody uses back to the kernel, wherever they are. Without this the
/// allocator gives back what is at the end of its heap, and no more. Takes milliseconds, in which
/// other threads may have to wait for memory: to be called after something large is over, not in the midst
/// of work.
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
