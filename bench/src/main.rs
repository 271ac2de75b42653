//! Reproducible comparisons.

fn main() {}
