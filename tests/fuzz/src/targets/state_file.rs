//! The state file of a node that a controller tells.

use fairlead_node::configuration::controller::fuzz;

/// Kinds of records.
const HEADER: u8 = 1;
const UPSERT: u8 = 2;

/// A file as it is, then the same bytes as the payloads of a file whose checksums fit: it is
/// refused in words, or holds no more objects than records. One that is read is not read with any
/// bit of it changed as if nothing were.
pub fn run(data: &[u8]) {
    if let Err(error) = fuzz::state(data) {
        assert!(!error.is_empty());
    }
    let mut records: Vec<(u8, &[u8])> = vec![(HEADER, br#"{"node":"n","cluster":"c","trim":1}"#)];
    records.extend(data.split(|b| *b == 0xfe).map(|part| match part.split_first() {
        Some((kind, payload)) => (1 + kind % 4, payload),
        None => (UPSERT, part),
    }));
    let sealed = fuzz::sealed(&records);
    match fuzz::state(&sealed) {
        Ok(objects) => {
            assert!(objects < records.len());
            let at = data.iter().map(|b| usize::from(*b)).sum::<usize>() % sealed.len();
            let mut damaged = sealed;
            damaged[at] ^= 1 << (at % 8);
            assert!(fuzz::state(&damaged).is_err(), "byte {at} changed, and nobody noticed");
        }
        Err(error) => assert!(!error.is_empty()),
    }
}
