//! Formats of the access log, and what hostile values make of a line.

use fairlead_telemetry::LogRecord;
use fairlead_telemetry::access_log::{Encoding, LogFormat};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::input;

/// A format is refused in words or renders: one line, whatever is in it, and JSON where JSON was
/// asked for.
pub fn run(data: &[u8]) {
    let (format, value) = input::two(data);
    let Some(format) = input::text(format) else { return };
    let words = String::from_utf8_lossy(value);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(value) {
        for name in ["user-agent", "x-forwarded-for", "x-request-id", "x"] {
            headers.insert(HeaderName::from_static(name), value.clone());
        }
    }
    for (encoding, text) in [
        (Encoding::Text, format),
        (Encoding::Json, format),
        (Encoding::Text, ""),
        (Encoding::Json, ""),
    ] {
        let compiled = match LogFormat::compile(encoding, text) {
            Ok(compiled) => compiled,
            Err(error) => {
                assert!(!text.is_empty(), "the default has to compile: {error}");
                assert!(error.to_string().starts_with("accessLogFormat: "), "{error}");
                continue;
            }
        };
        let record = LogRecord {
            method: Some(&words),
            path: Some(&words),
            authority: Some(&words),
            reason: Some(&words),
            route_name: Some(&words),
            requested_server_name: Some(&words),
            response_code: Some(200),
            response_code_details: Some(&words),
            protocol: Some("HTTP/1.1"),
            request_headers: compiled.capture_request(&headers),
            response_headers: compiled.capture_response(&headers),
            ..LogRecord::default()
        };
        let mut line = Vec::new();
        compiled.render(&record, &mut line);
        let Some((b'\n', line)) = line.split_last() else { panic!("no line feed at the end") };
        // The format itself has no line feed here: the input was cut at the first one. JSON can
        // write one with an escape, which is then escaped again.
        assert!(!line.contains(&b'\n'), "two lines: {}", line.escape_ascii());
        match encoding {
            Encoding::Json => {
                let read: Result<serde_json::Map<String, serde_json::Value>, _> =
                    serde_json::from_slice(line);
                assert!(read.is_ok(), "{read:?}: {}", line.escape_ascii());
            }
            Encoding::Text if text.is_ascii() && !text.bytes().any(|b| b.is_ascii_control()) => {
                let clean = line.iter().all(|b| matches!(b, 0x20..=0x7e));
                assert!(clean, "a client wrote {}", line.escape_ascii());
                let literal = !text.is_empty() && !text.contains('%');
                assert!(!literal || line == text.as_bytes(), "{}", line.escape_ascii());
            }
            Encoding::Text => {}
        }
    }
}
