//! The `fairlead-controller` binary.

fn main() {
    eprintln!("fairlead-controller {}", env!("CARGO_PKG_VERSION"));
}
