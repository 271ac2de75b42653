//! Route tables: the compiled form of VirtualService (and later HTTPRoute, TCPRoute).
//!
//! A table belongs to one destination service and port, so that what a request costs does not
//! grow with the routes of other hosts.

mod http;
mod tcp;

pub use self::http::{HttpAction, HttpMatch, HttpRoute, HttpRouteTable, Selected};
pub use self::tcp::{TcpMatch, TcpRoute, TcpRouteTable};

use crate::filter::headers::HeaderOps;

/// A stable number for a (host, port, subset): routes name clusters by it, the snapshot resolves
/// it with one index, and a changed endpoint does not touch any route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// One destination of a weighted route.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedDestination {
    /// Share of traffic, relative to the sum.
    pub weight: u32,
    /// Where to.
    pub cluster: ClusterId,
    /// Header operations of this destination only (`http.route.headers`).
    pub headers: HeaderOps,
}

/// Weighted destinations; at least one, with a positive sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    choices: Box<[WeightedDestination]>,
    total: u32,
}

impl Weighted {
    /// `None` when there is no choice or all weights are zero.
    #[must_use]
    pub fn new(choices: Vec<WeightedDestination>) -> Option<Self> {
        let total = choices.iter().try_fold(0u32, |sum, c| sum.checked_add(c.weight))?;
        (total > 0).then(|| Self { choices: choices.into(), total })
    }

    /// The choice for a uniformly random `ticket`.
    #[must_use]
    pub fn pick(&self, ticket: u32) -> &WeightedDestination {
        // Multiply-shift instead of modulo: no bias worth measuring, no division.
        let mut point = ((u64::from(ticket) * u64::from(self.total)) >> 32) as u32;
        for choice in &self.choices {
            if point < choice.weight {
                return choice;
            }
            point -= choice.weight;
        }
        // The sum of weights is `total` and `point < total`, so the loop has returned.
        &self.choices[self.choices.len() - 1]
    }

    /// All choices.
    #[must_use]
    pub fn choices(&self) -> &[WeightedDestination] {
        &self.choices
    }
}
