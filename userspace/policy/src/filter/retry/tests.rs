use super::*;

fn response(status: u16) -> Outcome {
    Outcome::Response { status: StatusCode::from_u16(status).unwrap(), grpc_status: None }
}

fn grpc(code: u8) -> Outcome {
    Outcome::Response { status: StatusCode::OK, grpc_status: Some(code) }
}

const RESET: Outcome = Outcome::Reset { request_sent: true };
const RESET_EARLY: Outcome = Outcome::Reset { request_sent: false };

/// Every condition against every outcome.
#[test]
fn truth_table() {
    let outcomes = [
        ("200", response(200)),
        ("404", response(404)),
        ("409", response(409)),
        ("500", response(500)),
        ("502", response(502)),
        ("503", response(503)),
        ("504", response(504)),
        ("cancelled", grpc(1)),
        ("deadline", grpc(4)),
        ("exhausted", grpc(8)),
        ("internal", grpc(13)),
        ("unavailable", grpc(14)),
        ("connect", Outcome::ConnectFailure),
        ("refused", Outcome::RefusedStream),
        ("reset", RESET),
        ("early", RESET_EARLY),
        ("try-timeout", Outcome::PerTryTimeout),
        ("limited", Outcome::RateLimited),
        ("overflow", Outcome::Overflow),
    ];
    let no_response = "connect refused reset early try-timeout";
    for (retry_on, retried) in [
        ("", String::new()),
        ("5xx", format!("500 502 503 504 {no_response}")),
        ("gateway-error", format!("502 503 504 {no_response}")),
        ("reset", no_response.into()),
        ("reset-before-request", "connect refused early".into()),
        ("connect-failure", "connect".into()),
        ("refused-stream", "refused".into()),
        ("retriable-4xx", "409".into()),
        ("retriable-status-codes", String::new()),
        ("404,503", "404 503".into()),
        (
            "retriable-status-codes,200",
            "200 cancelled deadline exhausted internal unavailable".into(),
        ),
        ("cancelled", "cancelled".into()),
        ("deadline-exceeded", "deadline".into()),
        ("resource-exhausted", "exhausted".into()),
        ("internal", "internal".into()),
        ("unavailable", "unavailable".into()),
        ("envoy-ratelimited", "limited".into()),
        ("retriable-headers,http3-post-connect-failure", String::new()),
        (
            "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "cancelled unavailable connect refused".into(),
        ),
    ] {
        let parsed = RetryOn::parse(retry_on).unwrap();
        let have: Vec<_> =
            outcomes.iter().filter(|(_, o)| parsed.matches(*o)).map(|(n, _)| *n).collect();
        assert_eq!(have.join(" "), retried, "{retry_on}");
    }
}

#[test]
fn parsing() {
    let default = RetryPolicy::default();
    let istio = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
    assert_eq!(default.retry_on, RetryOn::parse(istio).unwrap());
    assert_eq!((default.attempts, default.ignore_previous_hosts), (2, true));
    let spaced = RetryOn::parse(" 5xx , 503 ,,503, 409").unwrap();
    assert_eq!(spaced.to_string(), "5xx,retriable-status-codes,409,503");
    assert_eq!(RetryOn::parse(&spaced.to_string()), Ok(spaced));
    for bad in ["5XX", "nope", "99", "600", "-1", "5xx;reset"] {
        assert!(RetryOn::parse(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn attempts_are_counted_beyond_the_first() {
    let policy = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
    let again = |attempt| policy.should_retry(Outcome::ConnectFailure, attempt);
    assert_eq!([again(1), again(2), again(3)], [true, true, false]);
    assert!(!policy.should_retry(response(500), 1));
    let off = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
    assert!(!off.should_retry(Outcome::ConnectFailure, 1));
}

#[test]
fn backoff_grows_with_full_jitter_to_a_ceiling() {
    let policy = RetryPolicy::default();
    let most = |attempt| policy.backoff(attempt, u32::MAX).as_secs_f64() * 1000.0;
    for (attempt, ceiling) in [(1, 25.0), (2, 75.0), (3, 175.0), (4, 250.0), (9, 250.0)] {
        assert!((most(attempt) - ceiling).abs() < 0.001, "{attempt}: {}", most(attempt));
        assert_eq!(policy.backoff(attempt, 0), Duration::ZERO);
    }
    let half = policy.backoff(2, u32::MAX / 2).as_secs_f64();
    assert!((half - 0.0375).abs() < 1e-6, "{half}");
    let huge = RetryPolicy { backoff: Duration::MAX, ..RetryPolicy::default() };
    assert!(huge.backoff(u32::MAX, u32::MAX) <= Duration::from_secs(3 * 24 * 3600 + 24 * 3600));
}
