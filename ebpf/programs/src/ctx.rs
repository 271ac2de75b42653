//! Reads of a program's context. The verifier takes only loads at a constant distance from the
//! context pointer itself, and the optimiser likes to keep an address inside the context in a
//! register instead; written as one instruction each, there is nothing left to optimise.

/// Reads the `u32` field of the context, or one word of a field that is an array.
///
/// `read!(pointer => type, field)` or `read!(pointer => type, field, word)`; unsafe, because the
/// pointer must be the program's context.
macro_rules! read {
    ($ptr:expr => $ctx:ty, $field:ident) => {
        $crate::ctx::read!($ptr => $ctx, $field, 0)
    };
    ($ptr:expr => $ctx:ty, $field:ident, $word:literal) => {{
        let value: u64;
        let context: *mut $ctx = $ptr;
        core::arch::asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = lateout(reg) value,
            context = in(reg) context,
            offset = const core::mem::offset_of!($ctx, $field) + 4 * $word,
            options(nostack, preserves_flags, readonly),
        );
        value as u32
    }};
}

/// Reads a field of four words: an IPv6 address.
macro_rules! read_addr {
    ($ptr:expr => $ctx:ty, $field:ident) => {
        [
            $crate::ctx::read!($ptr => $ctx, $field, 0),
            $crate::ctx::read!($ptr => $ctx, $field, 1),
            $crate::ctx::read!($ptr => $ctx, $field, 2),
            $crate::ctx::read!($ptr => $ctx, $field, 3),
        ]
    };
}

pub(crate) use {read, read_addr};
