//! Fairlead's eBPF programs: the kernel's half of capture.
//!
//! One file per hook. Each path that does not know what to do refuses: a connection of an enrolled
//! pod reaches the daemon, or nothing.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod ctx;
mod flow;
mod maps;
mod peername;
mod sock;
mod sockname;
mod steer;

/// The kernel gives its helpers only to programs with a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
