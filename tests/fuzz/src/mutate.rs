//! A small mutator: enough to walk off the paths that the seeds show, always the same way from
//! the same number.

/// Longest input that mutation makes.
const LONGEST: usize = 64 << 10;
/// Changes of one mutation at most.
const CHANGES: usize = 5;

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 12] =
            [0, 1, 0x7f, 0x80, 0xff, b'\n', b'\r', b' ', b'%', b'/', b'"', b'\\'];
        match self.below(3) {
            0 => TELLING[self.below(TELLING.len())],
            _ => self.next().to_le_bytes()[0],
        }
    }

    /// A range within `len`, mostly short.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let longest = if self.below(4) == 0 { len - start } else { (len - start).min(8) };
        start..start + self.below(longest + 1)
    }
}

/// A number from a text, to tell the streams of random numbers apart.
pub(crate) fn hash(text: &[u8]) -> u64 {
    text.iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// Changes `data`; `other` is another seed, to splice with.
pub(crate) fn mutate(data: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    for _ in 0..=random.below(CHANGES) {
        change(data, other, words, random);
        data.truncate(LONGEST);
    }
}

fn change(data: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    let at = random.below(data.len());
    match random.below(12) {
        0 | 1 => {
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            let byte = random.byte();
            if let Some(old) = data.get_mut(at) {
                *old = byte;
            }
        }
        3 => {
            let range = random.range(data.len());
            data.drain(range);
        }
        4 => {
            let range = random.range(data.len());
            let piece = data[range].to_vec();
            let to = random.below(data.len() + 1);
            data.splice(to..to, piece);
        }
        5 => data.truncate(at),
        6 => {
            let range = random.range(other.len());
            let place = random.range(data.len());
            data.splice(place, other[range].iter().copied());
        }
        7 => {
            let piece: Vec<u8> = (0..=random.below(4)).map(|_| random.byte()).collect();
            let to = random.below(data.len() + 1);
            data.splice(to..to, piece);
        }
        // A number of one or two bytes, as lengths are.
        8 => {
            if let Some([high, low]) = data.get_mut(at..(at + 2)) {
                let value = u16::from_be_bytes([*high, *low]);
                let moved = match random.below(4) {
                    0 => value.wrapping_add(1),
                    1 => value.wrapping_sub(1),
                    2 => u16::MAX,
                    _ => 0,
                };
                [*high, *low] = moved.to_be_bytes();
            }
        }
        _ if words.is_empty() => {}
        9 => {
            let word = words[random.below(words.len())];
            let place = random.range(data.len());
            data.splice(place, word.iter().copied());
        }
        _ => {
            let word = words[random.below(words.len())];
            let to = random.below(data.len() + 1);
            data.splice(to..to, word.iter().copied());
        }
    }
}
