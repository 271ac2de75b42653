//! Words with a meaning: `retryOn`, gRPC statuses, protocols of ports, header operations.

use fairlead_policy::filter::fault::GrpcStatus;
use fairlead_policy::filter::headers::{Direction, HeaderEdit};
use fairlead_policy::filter::retry::RetryOn;
use fairlead_types::AppProtocol;
use http::HeaderMap;

use crate::input;

/// What is taken prints as what reads back the same, and case matters where it should not
/// nowhere.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    match RetryOn::parse(text) {
        Ok(conditions) => {
            let shown = conditions.to_string();
            assert_eq!(RetryOn::parse(&shown).as_ref(), Ok(&conditions), "{shown}");
            let mut words: Vec<&str> = text.split(',').collect();
            words.reverse();
            assert_eq!(RetryOn::parse(&words.join(",")), Ok(conditions), "order matters");
        }
        Err(error) => assert!(error.0.chars().count() <= 64),
    }
    if let Some(status) = GrpcStatus::parse(text) {
        assert!(status.code() <= 16);
        assert_eq!(GrpcStatus::parse(status.name()), Some(status));
        assert_eq!(GrpcStatus::parse(&status.code().to_string()), Some(status));
    }
    let protocol = AppProtocol::select(None, Some(text));
    assert_eq!(AppProtocol::select(Some("nobody knows this"), Some(text)), protocol);
    if !text.contains('-') {
        let upper = text.to_ascii_uppercase();
        assert_eq!(AppProtocol::select(None, Some(&upper)), protocol);
        assert_eq!(AppProtocol::select(None, Some(&format!("{text}-x"))), protocol);
    }
    header_edit(text);
}

/// `name: value` pairs: what compiles can be applied, and does what it says.
fn header_edit(text: &str) {
    let pairs: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.split_once(':')).take(16).collect();
    for direction in [Direction::Request, Direction::Response] {
        let edit = HeaderEdit::new(direction, pairs.iter().copied(), [], []);
        let Ok(edit) = edit else { continue };
        let mut headers = HeaderMap::new();
        edit.apply(&mut headers);
        for name in headers.keys() {
            assert!(name != "host" && !name.as_str().starts_with(':'), "{name} was set");
        }
        for value in headers.values() {
            assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
        }
        let mut again = headers.clone();
        edit.apply(&mut again);
        assert_eq!(again, headers, "setting twice is setting once");
        assert!(edit.authority().is_none() || direction == Direction::Request);
    }
}
