//! Fuzz targets for every parser that is ours: what an application, a peer, a file or a person
//! writes and this project takes apart by itself.
//!
//! A target is a plain function of bytes that panics when a property does not hold: a bound, a
//! round trip, or the agreement with a second, plainer formulation. `cargo test -p fairlead-fuzz`
//! runs each over its seeds (`corpus/<target>/`) and a fixed number of mutations of them, always
//! the same; the same functions serve libFuzzer. `README.md` says how to do either for longer.
#![forbid(unsafe_code)]

pub mod input;
#[expect(clippy::expect_used, reason = "a panic is how a target says that a property is broken")]
pub mod targets;

#[cfg(test)]
mod mutate;
#[cfg(test)]
mod suite;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its module and of its folder of seeds.
    pub name: &'static str,
    /// Tries one input.
    pub run: fn(&[u8]),
    /// Mutations that the suite makes of each seed: fewer where one input costs more.
    pub mutations: u32,
    /// What mutations insert beside bytes: the words of the syntax.
    pub words: &'static [&'static [u8]],
}
