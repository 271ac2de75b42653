use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fairlead_types::{ResponseFlags, SpiffeId};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(k, v)| ((*k).parse().unwrap(), HeaderValue::from_str(v).unwrap())).collect()
}

fn request() -> HeaderMap {
    headers(&[
        ("x-forwarded-for", "10.0.0.9"),
        ("user-agent", "curl/8 \"x\""),
        ("x-request-id", "8aef8b1c-3a1f-9e0f"),
        ("authorization", "Bearer secret"),
    ])
}

fn http_record(format: &LogFormat) -> LogRecord<'static> {
    LogRecord {
        start: UNIX_EPOCH + Duration::from_millis(1_795_358_580_123),
        duration: Duration::from_millis(12),
        protocol: Some("HTTP/1.1"),
        method: Some("GET"),
        path: Some("/reviews/0?x=1"),
        authority: Some("reviews:9080"),
        request_headers: format.capture_request(&request()),
        response_headers: format.capture_response(&HeaderMap::new()),
        response_code: Some(200),
        response_code_details: Some("via_upstream"),
        bytes_received: 5,
        bytes_sent: 295,
        upstream_host: Some("10.1.0.7:9080".parse().unwrap()),
        upstream_cluster: Some("outbound|9080|v1|reviews.default.svc.cluster.local"),
        upstream_local: Some("10.1.0.4:40000".parse().unwrap()),
        upstream_service_time: Some(Duration::from_millis(11)),
        downstream_local: Some("10.96.0.3:9080".parse().unwrap()),
        downstream_remote: Some("10.1.0.4:50000".parse().unwrap()),
        route_name: Some("default"),
        ..LogRecord::default()
    }
}

fn line(format: &LogFormat, record: &LogRecord<'_>) -> String {
    let mut out = Vec::new();
    format.render(record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn istios_text_format_field_by_field() {
    let format = LogFormat::compile(Encoding::Text, "").unwrap();
    assert_eq!(
        line(&format, &http_record(&format)),
        "[2026-11-22T14:43:00.123Z] \"GET /reviews/0?x=1 HTTP/1.1\" 200 - via_upstream - \"-\" \
         5 295 12 11 \"10.0.0.9\" \"curl/8 \\\"x\\\"\" \"8aef8b1c-3a1f-9e0f\" \"reviews:9080\" \
         \"10.1.0.7:9080\" outbound|9080|v1|reviews.default.svc.cluster.local 10.1.0.4:40000 \
         10.96.0.3:9080 10.1.0.4:50000 - default\n"
    );
    // Istio's default has 24 operators; START_TIME to ROUTE_NAME.
    assert_eq!(DEFAULT_TEXT_FORMAT.matches('%').count(), 2 * 24);
}

#[test]
fn a_refused_tcp_connection_says_why() {
    let format = LogFormat::compile(Encoding::Text, "").unwrap();
    let record = LogRecord {
        flags: ResponseFlags::UnauthorizedExternalService,
        reason: Some("denied by policy default/only-productpage"),
        downstream_remote: Some("[fd00::4]:50000".parse().unwrap()),
        ..LogRecord::default()
    };
    assert_eq!(
        line(&format, &record),
        "[1970-01-01T00:00:00.000Z] \"- - -\" 0 UAEX - denied_by_policy_default/only-productpage \
         \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - [fd00::4]:50000 - -\n"
    );
}

const ISTIO_JSON_KEYS: &[&str] = &[
    "start_time",
    "route_name",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "upstream_transport_failure_reason",
];

#[test]
fn the_json_schema() {
    let format = LogFormat::compile(Encoding::Json, "").unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/productpage".parse().unwrap();
    let mut record = http_record(&format);
    record.reason = Some("say \"why\"\n");
    record.downstream_identity = Some(&id);
    let value: Value = serde_json::from_str(&line(&format, &record)).unwrap();
    let object = value.as_object().unwrap();
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(keys[..ISTIO_JSON_KEYS.len()], *ISTIO_JSON_KEYS);
    assert_eq!(value["response_code"], 200);
    assert_eq!(value["bytes_sent"], 295);
    assert_eq!(value["duration"], 12);
    assert_eq!(value["upstream_service_time"], "11", "text, as every header");
    assert_eq!(value["user_agent"], "curl/8 \"x\"");
    assert_eq!(value["requested_server_name"], Value::Null);
    assert_eq!(value["reason"], "say \"why\"\n");
    assert_eq!(value["source_principal"], id.to_string());
    assert_eq!(value["start_time"], "2026-11-22T14:43:00.123Z");
}

#[test]
fn formats_of_the_operators_own() {
    let text = LogFormat::compile(
        Encoding::Text,
        "%START_TIME(%s)% 100%% %REQ(X-Missing?User-Agent):4% %RESP(Server)% \
         %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%\n",
    )
    .unwrap();
    let mut record = http_record(&text);
    record.response_headers = text.capture_response(&headers(&[("server", "tiny")]));
    assert_eq!(line(&text, &record), "1795358580 100% curl tiny 10.1.0.4 9080\n");

    let json = LogFormat::compile(
        Encoding::Json,
        r#"{"code":"%RESPONSE_CODE%","who":{"at":"%REQ(:AUTHORITY)%%REQ(:PATH)%"},"v":1}"#,
    )
    .unwrap();
    assert_eq!(
        line(&json, &http_record(&json)),
        "{\"code\":200,\"who\":{\"at\":\"reviews:9080/reviews/0?x=1\"},\"v\":1}\n"
    );
}

#[test]
fn formats_that_are_not_valid_are_named() {
    for (format, part) in [
        ("%NO_SUCH_THING%", "%NO_SUCH_THING%"),
        ("%REQ%", "header name"),
        ("%REQ(a b)%", "not a header name"),
        ("%REQ(X):two%", "not a number"),
        ("%START_TIME(%Q)%", "%Q"),
        ("%DURATION", "no closing"),
        ("%DURATION(ms)%", "%DURATION(ms)%"),
        ("%REQ(X", "no closing"),
    ] {
        let error = LogFormat::compile(Encoding::Text, format).unwrap_err().to_string();
        assert!(error.contains(part), "{format}: {error}");
    }
    let error = LogFormat::compile(Encoding::Json, "%DURATION%").unwrap_err();
    assert!(matches!(error, FormatError::Json(_)));
}

#[test]
fn a_client_cannot_forge_lines_or_fields() {
    let format = LogFormat::compile(Encoding::Text, "\"%REQ(USER-AGENT)%\" %REQ(:PATH)%").unwrap();
    let mut hostile = HeaderMap::new();
    let agent = HeaderValue::from_bytes(b"a\" 200 \xff\tb\\").unwrap();
    hostile.insert("user-agent", agent);
    let record = LogRecord {
        path: Some("/\u{1b}[2J\n[2026"),
        request_headers: format.capture_request(&hostile),
        ..LogRecord::default()
    };
    assert_eq!(line(&format, &record), "\"a\\\" 200 \\xff\\x09b\\\\\" /\\x1b[2J\\x0a[2026\n");
}

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fairlead-log-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn log_to(path: &Path) -> (Registry, AccessLog) {
    let registry = Registry::default();
    let log = AccessLog::new(&registry);
    let file = path.to_str().unwrap().to_owned();
    let format = "%BYTES_SENT%".to_owned();
    log.configure(&AccessLogConfig { file, encoding: Encoding::Text, format }).unwrap();
    (registry, log)
}

fn write(log: &AccessLog, n: u64) {
    let format = log.active().expect("configured");
    log.write(&format, &LogRecord { bytes_sent: n, ..LogRecord::default() });
}

#[test]
fn lines_reach_the_file_in_order_and_follow_a_rename() {
    let dir = TempDir::new("rename");
    let path = dir.0.join("access.log");
    let (_registry, log) = log_to(&path);
    for n in 0..1000 {
        write(&log, n);
    }
    log.flush();
    let expected: String = (0..1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

    let rotated = dir.0.join("access.log.1");
    std::fs::rename(&path, &rotated).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    write(&log, 7);
    log.flush();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "7\n");
    assert_eq!(std::fs::read_to_string(&rotated).unwrap(), expected);
    assert_eq!(log.lines.get(), 1001);
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let dir = TempDir::new("full");
    let fifo = dir.0.join("fifo");
    // Opening a FIFO for writing waits for a reader: the slowest disk there is.
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let registry = Registry::default();
    let log = AccessLog::new(&registry);
    let format = "x".repeat(1023);
    let file = fifo.to_str().unwrap().to_owned();
    log.configure(&AccessLogConfig { file, encoding: Encoding::Text, format }).unwrap();
    let format = log.active().unwrap();
    let begin = std::time::Instant::now();
    // What the writer took before it came to wait, what the queue holds, and then some.
    let lines = 4 * (sink::MAX_QUEUED / 1024) as u64;
    for _ in 0..lines {
        log.write(&format, &LogRecord::default());
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "the writer of lines waited");
    assert_eq!(log.lines.get() + log.dropped.get(), lines);
    assert!(log.dropped.get() >= lines / 2);
    // Lets the writer thread end.
    let _reader = std::fs::File::open(&fifo);
}

#[test]
fn configuration_can_change_and_end() {
    let dir = TempDir::new("change");
    let (one, two) = (dir.0.join("one"), dir.0.join("two"));
    let (_registry, log) = log_to(&one);
    write(&log, 1);
    let bad = AccessLogConfig {
        file: two.to_str().unwrap().into(),
        format: "%NOPE%".into(),
        ..AccessLogConfig::default()
    };
    assert!(log.configure(&bad).is_err());
    write(&log, 2);
    log.flush();
    assert_eq!(std::fs::read_to_string(&one).unwrap(), "1\n2\n", "the last good format stays");
    let under_way = log.active().unwrap();
    log.configure(&AccessLogConfig { format: "x%BYTES_SENT%".into(), ..bad.clone() }).unwrap();
    write(&log, 3);
    log.write(&under_way, &LogRecord { bytes_sent: 4, ..LogRecord::default() });
    log.flush();
    assert_eq!(std::fs::read_to_string(&two).unwrap(), "x3\n4\n", "who began before is logged");
    log.configure(&AccessLogConfig::default()).unwrap();
    assert!(log.active().is_none());
    log.write(&under_way, &LogRecord::default());
    assert_eq!((log.lines.get(), log.dropped.get()), (4, 0), "switched off is not dropped");
}

#[test]
fn lines_of_another_kind_are_written_whole() {
    use std::io::Write as _;

    let dir = TempDir::new("lines");
    let path = dir.0.join("own.log");
    let lines = Lines::to(path.to_str().unwrap());
    let registry = Registry::default();
    lines.export(&registry);
    (&lines).write_all(b"one\n").unwrap();
    lines.write(b"two\n");
    lines.flush();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    let mut out = crate::Exposition::default();
    registry.expose(&mut out);
    assert!(out.take().contains("fairlead_log_dropped_total 0\n"));
}
