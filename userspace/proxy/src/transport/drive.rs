//! What the drivers of both sides share: when a round is worked on, and whether the peer lives.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::error::TransportError;
use super::limits;
use super::round::Round;

/// Where a driver is in its round.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Woken: whoever else is ready gets to say its part first.
    Collect,
    /// Everyone has had a turn; now the framing works and the round is written.
    Work,
}

impl Turn {
    /// Lets the other tasks run once before the framing works, so that a round holds what all of
    /// them had to say. Ready when it is time to work: at once where a single stream has nobody
    /// to wait for.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, streams: usize) -> Poll<()> {
        match *self {
            Self::Collect if streams < 2 => Poll::Ready(()),
            Self::Collect => {
                *self = Self::Work;
                let yielded = std::pin::pin!(tokio::task::yield_now());
                // Its first poll only asks to be woken after the others.
                yielded.poll(cx)
            }
            Self::Work => {
                *self = Self::Collect;
                Poll::Ready(())
            }
        }
    }
}

/// Finds out whether a silent peer is still there. Any byte from it is a sign of life; only
/// after a silence is it asked.
pub(super) struct Keepalive {
    timer: Pin<Box<tokio::time::Sleep>>,
    pings: Option<h2::PingPong>,
    seen: u64,
    asked: bool,
}

impl Keepalive {
    pub(super) fn new(pings: Option<h2::PingPong>) -> Self {
        let timer = Box::pin(tokio::time::sleep(limits::KEEPALIVE));
        Self { timer, pings, seen: 0, asked: false }
    }

    /// Ready when the peer is dead.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, round: &Round) -> Poll<TransportError> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.asked && pings.poll_pong(cx).is_ready() {
            self.asked = false;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let received = round.received();
            let silent = received == self.seen;
            self.seen = received;
            if silent && self.asked {
                return Poll::Ready(TransportError::SessionLost(format!(
                    "the peer did not answer within {:?}",
                    limits::KEEPALIVE_TIMEOUT
                )));
            }
            // Fails only while one is under way, and then another is not needed.
            self.asked |= silent && pings.send_ping(h2::Ping::opaque()).is_ok();
            let pause = if silent { limits::KEEPALIVE_TIMEOUT } else { limits::KEEPALIVE };
            self.timer.as_mut().reset(Instant::now() + pause);
        }
        Poll::Pending
    }
}
