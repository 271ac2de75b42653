//! The pick itself.

use std::ops::Deref;

use super::{BalancerState, Load, LoadBalancer};

/// Something that can be picked.
pub trait Candidate {
    /// How busy it is.
    fn load(&self) -> &Load;
}

impl<T: Deref<Target: Candidate>> Candidate for T {
    fn load(&self) -> &Load {
        self.deref().load()
    }
}

/// Most hosts that a retry remembers to avoid; indices beyond are tried again.
pub const MAX_EXCLUDED: usize = 16;

/// Picks one of `candidates` by the uniformly random `ticket`. A retry names in `excluded` the
/// indices that it has tried; they are taken again only when there is no other.
///
/// `None` when there is no candidate, and for [`LoadBalancer::Passthrough`], where there is
/// nothing to pick.
#[must_use]
pub fn pick<E: Candidate>(
    balancer: &LoadBalancer,
    state: &BalancerState,
    candidates: &[E],
    excluded: &[usize],
    ticket: u64,
) -> Option<usize> {
    let excluded = &excluded[..excluded.len().min(MAX_EXCLUDED)];
    let mut field = Field::new(candidates.len(), excluded);
    if field.open == 0 {
        // Everybody has been tried: once more from the start (Envoy gives the predicate up too).
        field = Field::new(candidates.len(), &[]);
    }
    if field.open == 0 {
        return None;
    }
    match *balancer {
        LoadBalancer::Passthrough => None,
        LoadBalancer::RoundRobin => Some(field.at_or_after(state.advance() % candidates.len())),
        LoadBalancer::Random => Some(field.nth(below(ticket, field.open))),
        LoadBalancer::LeastRequest { choices } => {
            Some(least_request(candidates, &field, choices, ticket))
        }
    }
}

/// The least busy of `choices` different random candidates; of equals the first drawn.
fn least_request<E: Candidate>(
    candidates: &[E],
    field: &Field<'_>,
    choices: u32,
    ticket: u64,
) -> usize {
    let choices = usize::try_from(choices).unwrap_or(usize::MAX).clamp(1, field.open);
    let start = below(ticket, field.open);
    let first = field.nth(start);
    let mut best = (candidates[first].load().active(), first);
    // Two draws decide most picks; more walk on from a second random place, all different.
    let rest = field.open - 1;
    let offset = if rest == 0 { 0 } else { below(mix(ticket), rest) };
    for draw in 0..choices - 1 {
        let index = field.nth((start + 1 + (offset + draw) % rest) % field.open);
        let active = candidates[index].load().active();
        if active < best.0 {
            best = (active, index);
        }
    }
    best.1
}

/// The candidates that may be picked.
struct Field<'a> {
    len: usize,
    excluded: &'a [usize],
    /// How many are not excluded.
    open: usize,
}

impl<'a> Field<'a> {
    fn new(len: usize, excluded: &'a [usize]) -> Self {
        let mut field = Self { len, excluded, open: len };
        field.open -= field.excluded_up_to(usize::MAX);
        field
    }

    /// How many different candidates up to `index` are excluded.
    fn excluded_up_to(&self, index: usize) -> usize {
        let counted =
            |i: usize, e: usize| e < self.len && e <= index && !self.excluded[..i].contains(&e);
        self.excluded.iter().enumerate().filter(|(i, e)| counted(*i, **e)).count()
    }

    /// The `n`th open candidate, `n` below `open`.
    fn nth(&self, n: usize) -> usize {
        let mut index = n;
        loop {
            let shifted = n + self.excluded_up_to(index);
            if shifted == index {
                return index;
            }
            index = shifted;
        }
    }

    /// The first open candidate from `index` on, around the end.
    fn at_or_after(&self, index: usize) -> usize {
        (0..self.len)
            .map(|step| (index + step) % self.len)
            .find(|i| !self.excluded.contains(i))
            .unwrap_or(index)
    }
}

/// A uniform number below `bound` from `ticket`.
fn below(ticket: u64, bound: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below bound, which is a usize")]
    let n = ((u128::from(ticket) * bound as u128) >> 64) as usize;
    n
}

/// Another number that does not depend visibly on `ticket` (the finalizer of SplitMix64).
fn mix(ticket: u64) -> u64 {
    let mut z = ticket.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
