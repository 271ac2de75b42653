//! The series themselves: what one label set has seen. Handles are kept with a connection; every
//! event is a few relaxed additions, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fairlead_types::{Refusal, ResponseFlags};

use super::TrafficLabels;
use crate::metrics::{BYTES, DURATION_MICROS, Histogram};

/// Outcomes (code, flags, gRPC status) that one label set tells apart; further ones are counted
/// under `response_code="other"`.
pub(crate) const MAX_OUTCOMES: usize = 64;

/// How one HTTP request ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpEvent {
    /// Status code; 0: there was no response.
    pub code: u16,
    /// `grpc-status` of the trailers (or headers), for gRPC.
    pub grpc_status: Option<u16>,
    /// Why it ended so.
    pub flags: ResponseFlags,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Is { code: u16, grpc_status: Option<u16>, flags: ResponseFlags },
    Other,
}

/// What has been seen of one outcome.
#[derive(Debug)]
pub(crate) struct OutcomeCell {
    pub(crate) outcome: Outcome,
    /// Its count is that of `istio_requests_total` as well.
    pub(crate) duration: Histogram,
    pub(crate) request_bytes: Histogram,
    pub(crate) response_bytes: Histogram,
    next: OnceLock<Box<OutcomeCell>>,
}

impl OutcomeCell {
    fn new(outcome: Outcome) -> Box<Self> {
        Box::new(Self {
            outcome,
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
            next: OnceLock::new(),
        })
    }
}

/// HTTP and gRPC requests of one label set.
#[derive(Debug)]
pub struct HttpSeries {
    pub(crate) labels: TrafficLabels,
    /// A list that only grows, the most common outcome (the first seen) first: no lock to read it.
    first: OnceLock<Box<OutcomeCell>>,
}

impl HttpSeries {
    pub(crate) fn new(labels: TrafficLabels) -> Self {
        Self { labels, first: OnceLock::new() }
    }

    /// Counts a request that has ended.
    pub fn record(&self, event: &HttpEvent) {
        let cell = self.cell(Outcome::Is {
            code: event.code,
            grpc_status: event.grpc_status,
            flags: event.flags,
        });
        let micros = u64::try_from(event.duration.as_micros()).unwrap_or(u64::MAX);
        cell.duration.observe(micros, &DURATION_MICROS);
        cell.request_bytes.observe(event.request_bytes, &BYTES);
        cell.response_bytes.observe(event.response_bytes, &BYTES);
    }

    fn cell(&self, outcome: Outcome) -> &OutcomeCell {
        let mut slot = &self.first;
        for _ in 1..MAX_OUTCOMES {
            let cell = slot.get_or_init(|| OutcomeCell::new(outcome));
            if cell.outcome == outcome {
                return cell;
            }
            slot = &cell.next;
        }
        slot.get_or_init(|| OutcomeCell::new(Outcome::Other))
    }

    pub(crate) fn outcomes(&self) -> impl Iterator<Item = &OutcomeCell> {
        std::iter::successors(self.first.get(), |cell| cell.next.get()).map(AsRef::as_ref)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.outcomes().map(|cell| cell.duration.count()).sum()
    }
}

/// The refusals that `istio_tcp_connections_failed_total` tells apart, in the order of
/// [`refusal_index`].
pub(crate) const REFUSALS: [Refusal; 7] = [
    Refusal::Deny,
    Refusal::NetworkPolicy,
    Refusal::Connect,
    Refusal::TlsFailure,
    Refusal::IdentityError,
    Refusal::Overload,
    Refusal::NoRoute,
];

fn refusal_index(refusal: Refusal) -> usize {
    match refusal {
        Refusal::Deny => 0,
        Refusal::NetworkPolicy => 1,
        Refusal::Connect => 2,
        Refusal::TlsFailure => 3,
        Refusal::IdentityError => 4,
        Refusal::Overload => 5,
        Refusal::NoRoute => 6,
    }
}

/// TCP connections of one label set.
#[derive(Debug)]
pub struct TcpSeries {
    pub(crate) labels: TrafficLabels,
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) failed: [AtomicU64; REFUSALS.len()],
}

impl TcpSeries {
    pub(crate) fn new(labels: TrafficLabels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            failed: Default::default(),
        }
    }

    /// Counts a connection that was refused; it is neither opened nor closed.
    pub fn refused(&self, refusal: Refusal) {
        self.failed[refusal_index(refusal)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn events(&self) -> u64 {
        let failed = self.failed.iter();
        failed
            .chain([&self.opened, &self.closed, &self.sent, &self.received])
            .fold(0, |sum, n| sum.wrapping_add(n.load(Ordering::Relaxed)))
    }
}

/// One open TCP connection, reported by one or both sides. Opening counts it, dropping counts it
/// closed, whichever way the code that carried it was left.
#[derive(Debug)]
pub struct TcpConnection {
    first: Arc<TcpSeries>,
    second: Option<Arc<TcpSeries>>,
}

impl TcpConnection {
    /// Counts an opened connection. `second` is the other reporter's series when both ends are on
    /// this node.
    #[must_use]
    pub fn open(first: Arc<TcpSeries>, second: Option<Arc<TcpSeries>>) -> Self {
        let connection = Self { first, second };
        connection.each(|s| &s.opened, 1);
        connection
    }

    /// Counts bytes from the client to the server (`istio_tcp_received_bytes_total`: received
    /// from downstream, at both reporters).
    pub fn received(&self, bytes: u64) {
        self.each(|s| &s.received, bytes);
    }

    /// Counts bytes from the server to the client (`istio_tcp_sent_bytes_total`).
    pub fn sent(&self, bytes: u64) {
        self.each(|s| &s.sent, bytes);
    }

    fn each(&self, counter: impl Fn(&TcpSeries) -> &AtomicU64, n: u64) {
        counter(&self.first).fetch_add(n, Ordering::Relaxed);
        if let Some(second) = &self.second {
            counter(second).fetch_add(n, Ordering::Relaxed);
        }
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.each(|s| &s.closed, 1);
    }
}
