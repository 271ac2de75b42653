//! Fault injection: delays and aborts (VirtualService `fault`).
//!
//! Pure: random numbers come in, what to do comes out.

use std::time::Duration;

use http::StatusCode;

use crate::Percentage;

/// `fault` of a route. Delay and abort are decided independently; a request may suffer both, and
/// then waits before it is aborted (Envoy's order).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// `fault.delay`.
    pub delay: Option<Delay>,
    /// `fault.abort`.
    pub abort: Option<Abort>,
}

/// `fault.delay` with `fixedDelay`.
#[derive(Clone, Debug, PartialEq)]
pub struct Delay {
    /// `fixedDelay`.
    pub fixed: Duration,
    /// Which share of requests.
    pub percentage: Percentage,
}

/// `fault.abort`.
#[derive(Clone, Debug, PartialEq)]
pub struct Abort {
    /// What the client gets.
    pub with: AbortWith,
    /// Which share of requests.
    pub percentage: Percentage,
}

/// What an aborted client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortWith {
    /// `httpStatus`, with the body `fault filter abort`.
    Http(StatusCode),
    /// `grpcStatus`: HTTP 200 with `grpc-status` and no body.
    Grpc(GrpcStatus),
}

/// A gRPC status code, 0 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus(u8);

impl GrpcStatus {
    const NAMES: [&'static str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    /// From its name (`UNAVAILABLE`; Envoy's `CANCELED` too) or number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let wanted = if upper == "CANCELED" { "CANCELLED" } else { upper.as_str() };
        let code = Self::NAMES
            .iter()
            .position(|name| *name == wanted)
            .or_else(|| text.parse().ok().filter(|code| *code < Self::NAMES.len()))?;
        u8::try_from(code).ok().map(Self)
    }

    /// The number that `grpc-status` carries.
    #[must_use]
    pub fn code(self) -> u8 {
        self.0
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[usize::from(self.0)]
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Wait this long first (response flag `DI`).
    pub delay: Option<Duration>,
    /// Then answer with this instead of forwarding (response flag `FI`).
    pub abort: Option<AbortWith>,
}

impl Fault {
    /// Decides for one request by two independent, uniformly random tickets.
    #[must_use]
    pub fn decide(&self, delay_ticket: u32, abort_ticket: u32) -> Injected {
        Injected {
            delay: self
                .delay
                .as_ref()
                .filter(|delay| delay.percentage.hits(delay_ticket))
                .map(|delay| delay.fixed),
            abort: self
                .abort
                .as_ref()
                .filter(|abort| abort.percentage.hits(abort_ticket))
                .map(|abort| abort.with),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn delay_and_abort_are_independent() {
        let half = Percentage::from_percent(50.0).unwrap();
        let fault = Fault {
            delay: Some(Delay { fixed: Duration::from_secs(2), percentage: half }),
            abort: Some(Abort { with: AbortWith::Http(StatusCode::IM_A_TEAPOT), percentage: half }),
        };
        let mut rng = Rng::new("delay_and_abort_are_independent");
        let mut seen = [[0usize; 2]; 2];
        for _ in 0..40_000 {
            let Injected { delay, abort } = fault.decide(rng.ticket(), rng.ticket());
            assert!(delay.is_none_or(|d| d == Duration::from_secs(2)));
            assert!(abort.is_none_or(|a| a == AbortWith::Http(StatusCode::IM_A_TEAPOT)));
            seen[usize::from(delay.is_some())][usize::from(abort.is_some())] += 1;
        }
        // A quarter each, within five sigma.
        assert!(seen.iter().flatten().all(|n| n.abs_diff(10_000) < 5 * 87), "{seen:?}");
        assert_eq!(Fault::default().decide(0, 0), Injected::default());
    }

    #[test]
    fn grpc_statuses() {
        for (text, code) in [("UNAVAILABLE", 14), ("unavailable", 14), ("14", 14), ("OK", 0)] {
            assert_eq!(GrpcStatus::parse(text).map(GrpcStatus::code), Some(code), "{text}");
        }
        assert_eq!(GrpcStatus::parse("CANCELED").map(GrpcStatus::name), Some("CANCELLED"));
        for bad in ["", "17", "-1", "NOPE"] {
            assert_eq!(GrpcStatus::parse(bad), None, "{bad:?}");
        }
    }
}
