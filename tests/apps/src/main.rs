//! The applications of the demo and the scenarios.

fn main() {}
