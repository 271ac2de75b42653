//! Retries (VirtualService `retries`, MeshConfig `defaultHttpRetryPolicy`).

use std::fmt;
use std::time::Duration;

use http::StatusCode;

/// Envoy's default base interval between tries.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// Envoy's default ceiling, as a multiple of the base interval.
const BACKOFF_CEILING: u32 = 10;

/// When and how often a request is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// `attempts`: tries beyond the first; 0 switches retries off.
    pub attempts: u32,
    /// `perTryTimeout`; `None`: only the request's timeout bounds a try.
    pub per_try_timeout: Option<Duration>,
    /// `retryOn`.
    pub retry_on: RetryOn,
    /// `backoff`: base interval.
    pub backoff: Duration,
    /// `retryIgnorePreviousHosts`, default true: another host where there is one.
    pub ignore_previous_hosts: bool,
    /// `retryRemoteLocalities`.
    pub remote_localities: bool,
}

impl Default for RetryPolicy {
    /// Istio's default since 1.24 (`retry.DefaultPolicy`, 503 excluded): two attempts on
    /// `connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes`, the list
    /// of codes being empty.
    fn default() -> Self {
        let retry_on = Condition::ConnectFailure.bit()
            | Condition::RefusedStream.bit()
            | Condition::Unavailable.bit()
            | Condition::Cancelled.bit()
            | Condition::RetriableStatusCodes.bit();
        Self {
            attempts: 2,
            per_try_timeout: None,
            retry_on: RetryOn { conditions: retry_on, statuses: Box::default() },
            backoff: DEFAULT_BACKOFF,
            ignore_previous_hosts: true,
            remote_localities: false,
        }
    }
}

/// `retryOn`: conditions and status codes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    conditions: u16,
    statuses: Box<[u16]>,
}

/// A condition of Envoy's `x-envoy-retry-on` or `x-envoy-retry-grpc-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    ServerError,
    GatewayError,
    Reset,
    ResetBeforeRequest,
    ConnectFailure,
    EnvoyRatelimited,
    Retriable4xx,
    RefusedStream,
    RetriableStatusCodes,
    Cancelled,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
}

impl Condition {
    const ALL: [(&'static str, Self); 14] = [
        ("5xx", Self::ServerError),
        ("gateway-error", Self::GatewayError),
        ("reset", Self::Reset),
        ("reset-before-request", Self::ResetBeforeRequest),
        ("connect-failure", Self::ConnectFailure),
        ("envoy-ratelimited", Self::EnvoyRatelimited),
        ("retriable-4xx", Self::Retriable4xx),
        ("refused-stream", Self::RefusedStream),
        ("retriable-status-codes", Self::RetriableStatusCodes),
        ("cancelled", Self::Cancelled),
        ("deadline-exceeded", Self::DeadlineExceeded),
        ("internal", Self::Internal),
        ("resource-exhausted", Self::ResourceExhausted),
        ("unavailable", Self::Unavailable),
    ];

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl RetryOn {
    /// Conditions that never apply: of headers that nobody can name (Istio has no field for them),
    /// and of HTTP/3, which is not spoken.
    pub const NEVER: [&'static str; 2] = ["retriable-headers", "http3-post-connect-failure"];

    /// Parses `retryOn`: names and status codes, separated by commas. Naming a code implies
    /// `retriable-status-codes` (Istio `parseRetryOn`).
    ///
    /// # Errors
    /// The first word that is neither.
    pub fn parse(text: &str) -> Result<Self, RetryOnError> {
        let mut conditions = 0;
        let mut statuses = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            if let Some((_, condition)) = Condition::ALL.iter().find(|(name, _)| *name == word) {
                conditions |= condition.bit();
            } else if let Ok(status) = word.parse::<u16>()
                && (100..=599).contains(&status)
            {
                statuses.push(status);
                conditions |= Condition::RetriableStatusCodes.bit();
            } else if !Self::NEVER.contains(&word) {
                return Err(RetryOnError(word.chars().take(64).collect()));
            }
        }
        statuses.sort_unstable();
        statuses.dedup();
        Ok(Self { conditions, statuses: statuses.into() })
    }

    fn has(&self, condition: Condition) -> bool {
        self.conditions & condition.bit() != 0
    }

    /// Whether a try that ended like this may be repeated.
    #[must_use]
    pub fn matches(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Response { status, grpc_status } => {
                self.matches_status(status.as_u16())
                    || grpc_status.is_some_and(|code| self.matches_grpc(code))
            }
            Outcome::RateLimited => self.has(Condition::EnvoyRatelimited),
            Outcome::Overflow => false,
            failure => self.matches_failure(failure),
        }
    }

    fn matches_status(&self, status: u16) -> bool {
        (self.has(Condition::ServerError) && (500..=599).contains(&status))
            || (self.has(Condition::GatewayError) && matches!(status, 502..=504))
            || (self.has(Condition::Retriable4xx) && status == 409)
            || (self.has(Condition::RetriableStatusCodes)
                && self.statuses.binary_search(&status).is_ok())
    }

    fn matches_grpc(&self, code: u8) -> bool {
        self.has(match code {
            1 => Condition::Cancelled,
            4 => Condition::DeadlineExceeded,
            8 => Condition::ResourceExhausted,
            13 => Condition::Internal,
            14 => Condition::Unavailable,
            _ => return false,
        })
    }

    /// No response: that is a 5xx and a gateway error too (Envoy `wouldRetryFromReset`).
    fn matches_failure(&self, failure: Outcome) -> bool {
        self.has(Condition::ServerError)
            || self.has(Condition::GatewayError)
            || self.has(Condition::Reset)
            || match failure {
                Outcome::ConnectFailure => {
                    self.has(Condition::ConnectFailure) || self.has(Condition::ResetBeforeRequest)
                }
                Outcome::RefusedStream => {
                    self.has(Condition::RefusedStream) || self.has(Condition::ResetBeforeRequest)
                }
                Outcome::Reset { request_sent: false } => self.has(Condition::ResetBeforeRequest),
                _ => false,
            }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Condition::ALL.iter().filter(|(_, c)| self.has(*c)).map(|(n, _)| *n);
        for (i, name) in names.enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { "," })?;
        }
        self.statuses.iter().try_for_each(|status| write!(f, ",{status}"))
    }
}

/// A word in `retryOn` that is neither a known condition nor a status code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a retry condition nor a status code")]
pub struct RetryOnError(pub String);

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response began. `grpc_status` is that of a trailers-only response.
    Response {
        /// Its status.
        status: StatusCode,
        /// `grpc-status`, when it came with the headers.
        grpc_status: Option<u8>,
    },
    /// A response with `x-envoy-ratelimited`; never repeated unless asked for.
    RateLimited,
    /// No connection, or it timed out, or its TLS handshake failed.
    ConnectFailure,
    /// HTTP/2 REFUSED_STREAM, or GOAWAY that did not cover the stream.
    RefusedStream,
    /// The connection or stream ended before a response.
    Reset {
        /// Whether any byte of the request may have reached the server.
        request_sent: bool,
    },
    /// `perTryTimeout` passed.
    PerTryTimeout,
    /// A circuit breaker was open: never repeated.
    Overflow,
}

impl RetryPolicy {
    /// Whether to try again after try number `attempt` (the first is 1) ended with `outcome`.
    #[must_use]
    pub fn should_retry(&self, outcome: Outcome, attempt: u32) -> bool {
        attempt <= self.attempts && self.retry_on.matches(outcome)
    }

    /// How long to wait before the try after try number `attempt`, by a uniformly random
    /// `ticket`: full jitter below `(2^attempt - 1) * base`, at most ten times the base (Envoy).
    #[must_use]
    pub fn backoff(&self, attempt: u32, ticket: u32) -> Duration {
        let factor = 2u32.saturating_pow(attempt).saturating_sub(1).clamp(1, BACKOFF_CEILING);
        let ceiling =
            self.backoff.saturating_mul(factor).as_nanos().min(u128::from(u32::MAX) << 16);
        let nanos = (ceiling * u128::from(ticket)) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
