//! The command line: what istioctl is to Istio.

fn main() {}
