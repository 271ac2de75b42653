//! Sets of connected nodes: a bit each, so that a set per object stays cheap with a thousand of
//! them.

/// Number of a connected node; small, and used again.
pub(crate) type NodeId = usize;

/// A set of nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeSet(Vec<u64>);

impl PartialEq for NodeSet {
    /// Sets are equal whatever room they have.
    fn eq(&self, other: &Self) -> bool {
        let (short, long) =
            if self.0.len() < other.0.len() { (self, other) } else { (other, self) };
        let (same, rest) = long.0.split_at(short.0.len());
        same == short.0.as_slice() && rest.iter().all(|word| *word == 0)
    }
}

impl NodeSet {
    /// Takes a node in; whether it is new.
    pub(crate) fn insert(&mut self, node: NodeId) -> bool {
        let (word, bit) = (node / 64, 1 << (node % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Takes a node out; whether it was there.
    pub(crate) fn remove(&mut self, node: NodeId) -> bool {
        let (word, bit) = (node / 64, 1 << (node % 64));
        let Some(word) = self.0.get_mut(word) else { return false };
        let there = *word & bit != 0;
        *word &= !bit;
        there
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.0.get(node / 64).is_some_and(|word| word & (1 << (node % 64)) != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Empties it and gives its room back.
    pub(crate) fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// Takes all of `other` in.
    pub(crate) fn union_with(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    /// Those that are not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let others = other.0.iter().copied().chain(std::iter::repeat(0));
        Self(self.0.iter().zip(others).map(|(own, other)| own & !other).collect())
    }

    /// Those that are in `other`, too.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| own & other).collect())
    }

    /// A set of at most `max` nodes as it is on the wire: bit n % 8 of byte n / 8 is node n.
    pub(crate) fn to_bytes(&self, max: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(max / 8);
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        bytes
    }

    /// The other way around; `None` if there is more than `max / 8` bytes.
    pub(crate) fn from_bytes(bytes: &[u8], max: usize) -> Option<Self> {
        let word = |part: &[u8]| {
            part.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte))
        };
        (bytes.len() <= max / 8).then(|| Self(bytes.chunks(8).map(word).collect()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().enumerate().flat_map(|(index, word)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                if word == 0 {
                    return None;
                }
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                Some(index * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_over_the_wire() {
        let mut set = NodeSet::default();
        assert!(set.to_bytes(1024).is_empty());
        for node in [0, 9, 64, 70, 1023] {
            set.insert(node);
        }
        let bytes = set.to_bytes(1024);
        assert_eq!((bytes.len(), bytes[0], bytes[1], bytes[8]), (128, 1, 2, 0x41));
        assert_eq!(NodeSet::from_bytes(&bytes, 1024), Some(set.clone()));
        assert_eq!(NodeSet::from_bytes(&bytes, 1016), None);
        // What does not fit is left out.
        let short = NodeSet::from_bytes(&set.to_bytes(64), 64).expect("a set");
        assert_eq!(short.iter().collect::<Vec<_>>(), [0, 9]);
        assert_eq!(set.intersection(&short), short);
        assert_eq!(short.intersection(&set).len(), 2);
    }

    #[test]
    fn behaves_as_a_set() {
        let mut set = NodeSet::default();
        assert!(set.insert(3) && set.insert(200) && !set.insert(3));
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 200]);
        let mut other = NodeSet::default();
        other.insert(3);
        assert_eq!(set.without(&other).iter().collect::<Vec<_>>(), [200]);
        assert_eq!(other.without(&set).len(), 0);
        other.union_with(&set);
        assert_eq!((other.len(), other == set), (2, true));
        assert!(set.remove(200) && !set.remove(200) && !set.remove(9999));
        other.remove(200);
        assert!(set == other && !set.contains(200));
        assert!(other == set && set.contains(3));
        set.remove(3);
        assert!(set.is_empty());
    }
}
