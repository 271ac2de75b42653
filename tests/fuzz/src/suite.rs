//! The runner in the suite: seeds, then mutations of them, always the same unless asked.
//!
//! `FAIRLEAD_FUZZ_SEED` takes other mutations, `FAIRLEAD_FUZZ_SECONDS` goes on for so long for
//! each target, `FAIRLEAD_FUZZ_TRACE` writes every input down before it is tried (for what ends
//! the process, such as an overflow of the stack).

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::Target;
use crate::mutate::{Random, hash, mutate};

/// The mutations of every run, unless another number is asked for.
const SEED: u64 = 0xfa1e_1ead;
/// Longest that one input may take, generously: a debug build on a busy machine.
const SLOW: Duration = Duration::from_secs(10);
/// Tries to make a failing input shorter.
const SHORTENINGS: usize = 2_000;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Tries a target; panics with the input that breaks it.
pub(crate) fn run(target: &Target) {
    let seeds = seeds(target);
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let seed = number("FAIRLEAD_FUZZ_SEED").unwrap_or(SEED) ^ hash(target.name.as_bytes());
    let begin = Instant::now();
    let mut tried = 0_u64;
    for (_, data) in &seeds {
        check(target, data);
        tried += 1;
    }
    match number("FAIRLEAD_FUZZ_SECONDS") {
        None => {
            for (name, data) in &seeds {
                let mut random = Random::new(seed ^ hash(name.as_bytes()));
                for _ in 0..target.mutations {
                    check(target, &next(target, data, &seeds, &mut random));
                    tried += 1;
                }
            }
        }
        Some(seconds) => {
            let mut random = Random::new(seed);
            while begin.elapsed() < Duration::from_secs(seconds) {
                let data = &seeds[random.below(seeds.len())].1;
                check(target, &next(target, data, &seeds, &mut random));
                tried += 1;
            }
        }
    }
    let took = begin.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = tried as f64 / took.as_secs_f64().max(1e-6);
    println!("{}: {} seeds, {tried} inputs in {took:.2?}, {rate:.0}/s", target.name, seeds.len());
}

fn next(target: &Target, data: &[u8], seeds: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut data = data.to_vec();
    let other = &seeds[random.below(seeds.len())].1;
    mutate(&mut data, other, target.words, random);
    data
}

/// The seeds, in order of their names; there has to be one.
fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut seeds: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    assert!(!seeds.is_empty(), "{} has no seeds", dir.display());
    seeds.sort();
    seeds
}

fn check(target: &Target, data: &[u8]) {
    if std::env::var_os("FAIRLEAD_FUZZ_TRACE").is_some() {
        keep(&format!("{}-last", target.name), data);
    }
    let begin = Instant::now();
    let failure = attempt(target, data).err();
    let took = begin.elapsed();
    let (data, why) = match failure {
        Some(why) => (shorten(target, data), why),
        None if took > SLOW => (data.to_vec(), format!("took {took:?}")),
        None => return,
    };
    let path = keep(&format!("{}-{:016x}", target.name, hash(&data)), &data);
    panic!("{}: {why}\ninput: {}\nwritten to {}", target.name, literal(&data), path.display());
}

/// What the target says of the input: the message of its panic.
fn attempt(target: &Target, data: &[u8]) -> Result<(), String> {
    silence();
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(data)));
    QUIET.set(false);
    result.map_err(|payload| match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast::<&str>().map_or_else(|_| "panic".into(), |t| t.to_string()),
    })
}

/// Panics that are caught here are told once, with the shortest input, not each time.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

/// A shorter input that fails too, by leaving out ever smaller pieces.
fn shorten(target: &Target, data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    let mut piece = data.len() / 2;
    let mut left = SHORTENINGS;
    while piece > 0 {
        let mut at = 0;
        while at < data.len() && left > 0 {
            left -= 1;
            let mut shorter = data.clone();
            shorter.drain(at..(at + piece).min(data.len()));
            if attempt(target, &shorter).is_err() {
                data = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    data
}

/// Writes an input below the target directory.
fn keep(name: &str, data: &[u8]) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // <target>/<profile>/deps/<this>
    let dir = exe.ancestors().nth(3).unwrap().join("fuzz-failures");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    fs::write(&path, data).unwrap();
    path
}

/// The bytes as Rust writes them.
fn literal(data: &[u8]) -> String {
    let mut text = String::from("b\"");
    for byte in data {
        let _ = write!(text, "{}", std::ascii::escape_default(*byte));
    }
    text.push('"');
    text
}

/// A target that is broken on purpose: what the runner must not let pass.
mod broken {
    use super::*;

    fn panics_on_two_in_order(data: &[u8]) {
        let first = data.iter().position(|b| *b == b'<');
        let second = data.iter().rposition(|b| *b == b'>');
        assert!(!matches!((first, second), (Some(a), Some(b)) if a < b), "found it");
    }

    const TARGET: Target =
        Target { name: "broken", run: panics_on_two_in_order, mutations: 0, words: &[b"<", b">"] };

    #[test]
    fn a_failure_is_found_shortened_and_told() {
        let mut random = Random::new(1);
        let found = (0..10_000).find_map(|_| {
            let data = next(
                &TARGET,
                b"a seed without either",
                &[(String::new(), b"another".to_vec())],
                &mut random,
            );
            attempt(&TARGET, &data).is_err().then_some(data)
        });
        let found = found.expect("10,000 mutations with the right words find it");
        let told = panic::catch_unwind(|| {
            silence();
            QUIET.set(true);
            check(&TARGET, &found);
        });
        QUIET.set(false);
        let told = *told.unwrap_err().downcast::<String>().unwrap();
        assert!(told.contains("found it") && told.contains("input: b\"<>\""), "{told}");
        let path = told.rsplit_once("written to ").unwrap().1;
        assert_eq!(fs::read(path).unwrap(), b"<>");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_same_number_makes_the_same_inputs() {
        let seeds = [(String::new(), b"other <seed>".to_vec())];
        let inputs = |number| {
            let mut random = Random::new(number);
            (0..100).map(|_| next(&TARGET, b"seed", &seeds, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}
