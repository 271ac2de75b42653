//! From a record to a line.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use fairlead_types::SpiffeId;

use super::LogRecord;
use super::format::{Field, Layout};
use super::operator::{Header, Operator, Segment, Simple};
use super::record::Captured;
use super::time::{self, Utc};
use crate::istio::{Reporter, WorkloadLabels};

/// What an operator yields.
enum Value<'a> {
    Missing,
    Number(u64),
    Text(&'a str),
    /// Text in which the unquoted places of Istio's text format must not see a space.
    Words(&'a str),
    Bytes(&'a [u8]),
    Owned(Vec<u8>),
    Address(SocketAddr),
    Ip(IpAddr),
    Identity(&'a SpiffeId),
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        value.filter(|v| !v.is_empty()).map_or(Self::Missing, Self::Text)
    }
}

impl From<Option<SocketAddr>> for Value<'_> {
    fn from(value: Option<SocketAddr>) -> Self {
        value.map_or(Self::Missing, Self::Address)
    }
}

impl<'a> From<Option<&'a SpiffeId>> for Value<'a> {
    fn from(value: Option<&'a SpiffeId>) -> Self {
        value.map_or(Self::Missing, Self::Identity)
    }
}

pub(crate) fn line(layout: &Layout, record: &LogRecord<'_>, out: &mut Vec<u8>) {
    match layout {
        Layout::Text(segments) => {
            for segment in segments {
                match segment {
                    Segment::Literal(text) => out.extend_from_slice(text.as_bytes()),
                    Segment::Operator(operator) => text(value(operator, record), out),
                }
            }
        }
        Layout::Json(fields) => object(fields, record, out),
    }
    out.push(b'\n');
}

fn object(fields: &[(String, Field)], record: &LogRecord<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (key, field)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b':');
        match field {
            Field::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Field::Object(inner) => object(inner, record, out),
            Field::Template(segments) => match segments.as_slice() {
                [Segment::Operator(operator)] => json(value(operator, record), out),
                segments => {
                    let mut whole = Vec::new();
                    for segment in segments {
                        match segment {
                            Segment::Literal(text) => whole.extend_from_slice(text.as_bytes()),
                            Segment::Operator(operator) => {
                                plain(value(operator, record), &mut whole);
                            }
                        }
                    }
                    json_string(&whole, out);
                }
            },
        }
    }
    out.push(b'}');
}

fn value<'a>(operator: &Operator, record: &'a LogRecord<'_>) -> Value<'a> {
    match operator {
        Operator::StartTime(format) => {
            let time = Utc::new(record.start);
            let mut out = Vec::with_capacity(24);
            match format {
                None => time.iso(&mut out),
                Some(parts) => time::render(parts, &time, &mut out),
            }
            Value::Owned(out)
        }
        Operator::Request { main, alternative, max } => {
            header(*main, *alternative, *max, |which| match which {
                Header::Method => bytes(record.method),
                Header::Path => bytes(record.path),
                Header::Authority => bytes(record.authority),
                Header::Scheme => bytes(record.scheme),
                Header::Captured(i) => captured(&record.request_headers, i),
            })
        }
        Operator::Response { main, alternative, max, service_time } => {
            let found = header(*main, *alternative, *max, |which| match which {
                Header::Captured(i) => captured(&record.response_headers, i),
                _ => None,
            });
            match (found, record.upstream_service_time) {
                (Value::Missing, Some(time)) if *service_time => {
                    // Text, as every header is.
                    Value::Owned(millis(time).to_string().into_bytes())
                }
                (found, _) => found,
            }
        }
        Operator::Simple(simple) => simple_value(*simple, record),
    }
}

fn simple_value<'a>(simple: Simple, r: &'a LogRecord<'_>) -> Value<'a> {
    let words = |text: Option<&'a str>| text.map_or(Value::Missing, Value::Words);
    let tcp = r.protocol.is_none();
    match simple {
        Simple::Protocol => r.protocol.into(),
        Simple::ResponseCode => Value::Number(r.response_code.unwrap_or(0).into()),
        Simple::ResponseFlags => Value::Text(r.flags.as_str()),
        // A refusal always says why, also where only the standard fields are logged.
        Simple::ResponseCodeDetails => words(r.response_code_details.or(r.reason.filter(|_| !tcp))),
        Simple::ConnectionTerminationDetails => {
            words(r.connection_termination_details.or(r.reason.filter(|_| tcp)))
        }
        Simple::UpstreamTransportFailureReason => r.upstream_transport_failure_reason.into(),
        Simple::GrpcStatus => r.grpc_status.map_or(Value::Missing, |n| Value::Number(n.into())),
        Simple::BytesReceived => Value::Number(r.bytes_received),
        Simple::BytesSent => Value::Number(r.bytes_sent),
        Simple::Duration => Value::Number(millis(r.duration)),
        Simple::UpstreamHost | Simple::UpstreamRemoteAddress => r.upstream_host.into(),
        Simple::UpstreamCluster | Simple::UpstreamClusterRaw => r.upstream_cluster.into(),
        Simple::UpstreamLocalAddress => r.upstream_local.into(),
        Simple::DownstreamLocalAddress => r.downstream_local.into(),
        Simple::DownstreamLocalPort => {
            r.downstream_local.map_or(Value::Missing, |a| Value::Number(a.port().into()))
        }
        Simple::DownstreamRemoteAddress => r.downstream_remote.into(),
        Simple::DownstreamRemoteIp => {
            r.downstream_remote.map_or(Value::Missing, |a| Value::Ip(a.ip()))
        }
        Simple::RequestedServerName => r.requested_server_name.into(),
        Simple::RouteName => r.route_name.into(),
        Simple::DownstreamPeer => r.downstream_identity.into(),
        Simple::UpstreamPeer => r.upstream_identity.into(),
        Simple::Reason => r.reason.into(),
        Simple::Reporter => r.reporter.map(Reporter::as_str).into(),
        Simple::SourceWorkload => r.source.map(WorkloadLabels::workload).into(),
        Simple::SourceNamespace => r.source.map(WorkloadLabels::namespace).into(),
        Simple::SourcePrincipal => r.downstream_identity.or_else(|| r.source?.principal()).into(),
        Simple::DestinationWorkload => r.destination.map(WorkloadLabels::workload).into(),
        Simple::DestinationNamespace => r.destination.map(WorkloadLabels::namespace).into(),
        Simple::DestinationPrincipal => {
            r.upstream_identity.or_else(|| r.destination?.principal()).into()
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bytes(text: Option<&str>) -> Option<&[u8]> {
    text.filter(|t| !t.is_empty()).map(str::as_bytes)
}

fn captured(headers: &Captured, index: usize) -> Option<&[u8]> {
    headers.0.get(index)?.as_ref().map(http::HeaderValue::as_bytes)
}

fn header<'a>(
    main: Header,
    alternative: Option<Header>,
    max: usize,
    get: impl Fn(Header) -> Option<&'a [u8]>,
) -> Value<'a> {
    match get(main).or_else(|| get(alternative?)) {
        Some(value) => Value::Bytes(&value[..value.len().min(max)]),
        None => Value::Missing,
    }
}

/// As it is, `-` for what is missing.
fn plain(value: Value<'_>, out: &mut Vec<u8>) {
    let _ = match value {
        Value::Missing => write!(out, "-"),
        Value::Number(n) => write!(out, "{n}"),
        Value::Text(t) | Value::Words(t) => out.write_all(t.as_bytes()),
        Value::Bytes(b) => out.write_all(b),
        Value::Owned(b) => out.write_all(&b),
        Value::Address(a) => write!(out, "{a}"),
        Value::Ip(a) => write!(out, "{a}"),
        Value::Identity(id) => write!(out, "{id}"),
    };
}

/// For a line of text: nothing that a client sends can end the line, close a quote or pass for a
/// field of its own.
fn text(value: Value<'_>, out: &mut Vec<u8>) {
    let escape = |bytes: &[u8], out: &mut Vec<u8>| {
        for &byte in bytes {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                0x20..=0x7e => out.push(byte),
                _ => {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
        }
    };
    match value {
        Value::Words(words) => {
            let joined = words.replace(char::is_whitespace, "_");
            escape(joined.as_bytes(), out);
        }
        Value::Text(text) => escape(text.as_bytes(), out),
        Value::Bytes(bytes) => escape(bytes, out),
        other => plain(other, out),
    }
}

fn json(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Missing => out.extend_from_slice(b"null"),
        Value::Number(_) => plain(value, out),
        Value::Text(t) | Value::Words(t) => json_string(t.as_bytes(), out),
        Value::Bytes(b) => json_string(b, out),
        Value::Owned(b) => json_string(&b, out),
        Value::Address(_) | Value::Ip(_) | Value::Identity(_) => {
            // None of these can hold a character that JSON escapes.
            out.push(b'"');
            plain(value, out);
            out.push(b'"');
        }
    }
}

fn json_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
