//! Envoy's command operators: those that this proxy has something to say for. Others are an error
//! when the format is compiled, not a dash for ever.

use http::HeaderName;

use super::format::FormatError;
use super::time::{self, TimePart};

/// Where a header operator finds its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Method,
    Path,
    Authority,
    Scheme,
    /// Index into the captured headers.
    Captured(usize),
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    StartTime(Option<Vec<TimePart>>),
    Request {
        main: Header,
        alternative: Option<Header>,
        max: usize,
    },
    Response {
        main: Header,
        alternative: Option<Header>,
        max: usize,
        /// The header is the one that the proxy itself knows the value of.
        service_time: bool,
    },
    Simple(Simple),
}

macro_rules! simple {
    ($($name:literal => $variant:ident,)*) => {
        /// An operator without arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Simple { $($variant),* }

        const SIMPLE: &[(&str, Simple)] = &[$(($name, Simple::$variant)),*];
    };
}

simple! {
    "PROTOCOL" => Protocol,
    "RESPONSE_CODE" => ResponseCode,
    "RESPONSE_FLAGS" => ResponseFlags,
    "RESPONSE_CODE_DETAILS" => ResponseCodeDetails,
    "CONNECTION_TERMINATION_DETAILS" => ConnectionTerminationDetails,
    "UPSTREAM_TRANSPORT_FAILURE_REASON" => UpstreamTransportFailureReason,
    "GRPC_STATUS_NUMBER" => GrpcStatus,
    "BYTES_RECEIVED" => BytesReceived,
    "BYTES_SENT" => BytesSent,
    "DURATION" => Duration,
    "UPSTREAM_HOST" => UpstreamHost,
    "UPSTREAM_REMOTE_ADDRESS" => UpstreamRemoteAddress,
    "UPSTREAM_CLUSTER" => UpstreamCluster,
    "UPSTREAM_CLUSTER_RAW" => UpstreamClusterRaw,
    "UPSTREAM_LOCAL_ADDRESS" => UpstreamLocalAddress,
    "DOWNSTREAM_LOCAL_ADDRESS" => DownstreamLocalAddress,
    "DOWNSTREAM_LOCAL_PORT" => DownstreamLocalPort,
    "DOWNSTREAM_REMOTE_ADDRESS" => DownstreamRemoteAddress,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => DownstreamRemoteIp,
    "REQUESTED_SERVER_NAME" => RequestedServerName,
    "ROUTE_NAME" => RouteName,
    "DOWNSTREAM_PEER_URI_SAN" => DownstreamPeer,
    "UPSTREAM_PEER_URI_SAN" => UpstreamPeer,
    "REASON" => Reason,
    "REPORTER" => Reporter,
    "SOURCE_WORKLOAD" => SourceWorkload,
    "SOURCE_NAMESPACE" => SourceNamespace,
    "SOURCE_PRINCIPAL" => SourcePrincipal,
    "DESTINATION_WORKLOAD" => DestinationWorkload,
    "DESTINATION_NAMESPACE" => DestinationNamespace,
    "DESTINATION_PRINCIPAL" => DestinationPrincipal,
}

/// Literal text or an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(String),
    Operator(Operator),
}

/// The headers that a format mentions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers {
    pub(crate) request: Vec<HeaderName>,
    pub(crate) response: Vec<HeaderName>,
}

/// Takes a format string apart.
pub(crate) fn parse(format: &str, headers: &mut Headers) -> Result<Vec<Segment>, FormatError> {
    let mut segments = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let end = operator_end(rest)
            .ok_or_else(|| FormatError::Unclosed(rest.chars().take(40).collect()))?;
        if !literal.is_empty() {
            segments.push(Segment::Literal(std::mem::take(&mut literal)));
        }
        segments.push(Segment::Operator(operator(&rest[..end], headers)?));
        rest = &rest[end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        segments.push(Segment::Literal(literal));
    }
    Ok(segments)
}

/// The closing `%`: the first one that is not inside parentheses.
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    text.bytes().position(|byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        byte == b'%' && depth == 0
    })
}

fn operator(text: &str, headers: &mut Headers) -> Result<Operator, FormatError> {
    let invalid = |why: &str| FormatError::Operator { operator: text.to_owned(), why: why.into() };
    let (name, argument, tail) = match text.split_once('(') {
        None => (text, None, ""),
        Some((name, rest)) => {
            let (argument, tail) =
                rest.rsplit_once(')').ok_or_else(|| invalid("a closing ')' is missing"))?;
            (name, Some(argument), tail)
        }
    };
    let max = match tail.strip_prefix(':') {
        None if tail.is_empty() => usize::MAX,
        None => return Err(invalid("after ')' only ':LENGTH' may follow")),
        Some(n) => n.parse().map_err(|_| invalid("the length after ':' is not a number"))?,
    };
    let limited = max != usize::MAX;
    match (name, argument) {
        ("START_TIME", None | Some("")) if !limited => Ok(Operator::StartTime(None)),
        ("START_TIME", Some(format)) if !limited => {
            let parts = time::compile(format).map_err(|specifier| {
                invalid(&format!(
                    "the time specifier {specifier} is not supported; use %Y %m %d %H %M %S %s \
                     %3f %6f %9f"
                ))
            })?;
            Ok(Operator::StartTime(Some(parts)))
        }
        ("REQ", Some(argument)) => {
            let (main, alternative) = header_pair(argument, &mut headers.request, true)
                .ok_or_else(|| invalid("not a header name"))?;
            Ok(Operator::Request { main, alternative, max })
        }
        ("RESP", Some(argument)) => {
            let (main, alternative) = header_pair(argument, &mut headers.response, false)
                .ok_or_else(|| invalid("not a header name"))?;
            let service_time = argument.eq_ignore_ascii_case("x-envoy-upstream-service-time");
            Ok(Operator::Response { main, alternative, max, service_time })
        }
        ("REQ" | "RESP", None) => Err(invalid("a header name in parentheses is missing")),
        ("GRPC_STATUS", Some("NUMBER")) if !limited => Ok(Operator::Simple(Simple::GrpcStatus)),
        (name, None) if !limited => SIMPLE
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, simple)| Operator::Simple(*simple))
            .ok_or_else(|| invalid("not an operator that is supported here")),
        _ => Err(invalid("not an operator that is supported here with arguments")),
    }
}

fn header_pair(
    argument: &str,
    names: &mut Vec<HeaderName>,
    request: bool,
) -> Option<(Header, Option<Header>)> {
    let (main, alternative) = match argument.split_once('?') {
        Some((main, alternative)) => (main, Some(alternative)),
        None => (argument, None),
    };
    let main = header(main, names, request)?;
    let alternative = match alternative {
        Some(name) => Some(header(name, names, request)?),
        None => None,
    };
    Some((main, alternative))
}

fn header(name: &str, names: &mut Vec<HeaderName>, request: bool) -> Option<Header> {
    if request {
        match name.to_ascii_lowercase().as_str() {
            ":method" => return Some(Header::Method),
            ":path" => return Some(Header::Path),
            ":authority" | "host" => return Some(Header::Authority),
            ":scheme" => return Some(Header::Scheme),
            _ => {}
        }
    }
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let index = names.iter().position(|known| *known == name).unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    });
    Some(Header::Captured(index))
}
