//! The result of a TCP connection: one object whose drop guarantees the metrics and exactly one
//! access log line, whichever way the code that carried the connection was left.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fairlead_telemetry::{LogRecord, Protocol, TcpConnection};
use fairlead_types::{Refusal, ResponseFlags, SpiffeId};

use crate::labels::{self, Parties};
use crate::live::Entry;
use crate::state::Shared;

/// How a connection ended, or that it was refused.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) refusal: Option<Refusal>,
    pub(crate) flags: ResponseFlags,
    /// For people.
    pub(crate) reason: Option<Cow<'static, str>>,
    /// Envoy's word.
    pub(crate) details: Option<Cow<'static, str>>,
}

impl Verdict {
    /// A refusal, with Envoy's flag for its class.
    pub(crate) fn refused(class: Refusal, reason: impl Into<Cow<'static, str>>) -> Self {
        let flags = match class {
            Refusal::Deny => ResponseFlags::UnauthorizedExternalService,
            Refusal::NetworkPolicy | Refusal::NoRoute => ResponseFlags::NoRouteFound,
            Refusal::Connect | Refusal::TlsFailure | Refusal::IdentityError => {
                ResponseFlags::UpstreamConnectionFailure
            }
            Refusal::Overload => ResponseFlags::UpstreamOverflow,
        };
        Self { refusal: Some(class), flags, reason: Some(reason.into()), details: None }
    }
}

/// One connection.
pub(crate) struct TcpReport {
    shared: Arc<Shared>,
    pub(crate) entry: Entry,
    began: Instant,
    start: SystemTime,
    pub(crate) parties: Parties,
    pub(crate) downstream_remote: SocketAddr,
    pub(crate) downstream_local: SocketAddr,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) upstream_local: Option<SocketAddr>,
    pub(crate) upstream_identity: Option<SpiffeId>,
    pub(crate) transport_failure: Option<String>,
    pub(crate) verdict: Verdict,
    /// HTTP takes over: requests have reports of their own.
    silent: bool,
}

impl TcpReport {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        entry: Entry,
        parties: Parties,
        downstream_remote: SocketAddr,
        downstream_local: SocketAddr,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            entry,
            began: Instant::now(),
            start: SystemTime::now(),
            parties,
            downstream_remote,
            downstream_local,
            route: None,
            cluster: None,
            upstream: None,
            upstream_local: None,
            upstream_identity: None,
            transport_failure: None,
            verdict: Verdict::default(),
            silent: false,
        }
    }

    /// The connection is carried from here on.
    pub(crate) fn open(&mut self) {
        let (first, second) = self.parties.labels(Protocol::Tcp);
        let series = |labels| self.shared.telemetry.tcp_series(labels);
        self.entry.open(TcpConnection::open(series(&first), second.as_ref().map(series)));
    }

    /// The pod's own application is the upstream.
    pub(crate) fn name_application(&mut self, to: SocketAddr) {
        self.upstream = Some(to);
        self.cluster = Some(labels::inbound_cluster(to.port()));
    }

    /// The connection turned out to be HTTP: its requests are reported instead.
    pub(crate) fn becomes_http(&mut self) {
        self.silent = true;
        self.entry.set(crate::live::State::Http, None);
    }
}

impl TcpReport {
    /// HTTP took over and ended because the client broke the protocol, of which no request tells.
    pub(crate) fn broke_protocol(&mut self, broken: Option<String>) {
        let Some(reason) = broken else { return };
        self.silent = false;
        self.verdict = Verdict {
            flags: ResponseFlags::DownstreamProtocolError,
            reason: Some(reason.into()),
            details: Some("codec_error".into()),
            refusal: None,
        };
    }
}

impl Drop for TcpReport {
    fn drop(&mut self) {
        if self.silent {
            return;
        }
        if let (Some(refusal), false) = (self.verdict.refusal, self.entry.is_open()) {
            let (first, second) = self.parties.labels(Protocol::Tcp);
            for labels in [Some(first), second].into_iter().flatten() {
                self.shared.telemetry.tcp_series(&labels).refused(refusal);
            }
        }
        let log = self.shared.telemetry.access_log();
        let Some(format) = log.active() else { return };
        let (sent, received) = self.entry.bytes();
        log.write(
            &format,
            &LogRecord {
                start: self.start,
                duration: self.began.elapsed(),
                flags: self.verdict.flags,
                connection_termination_details: self.verdict.details.as_deref(),
                upstream_transport_failure_reason: self.transport_failure.as_deref(),
                reason: self.verdict.reason.as_deref(),
                bytes_received: sent,
                bytes_sent: received,
                upstream_host: self.upstream,
                upstream_cluster: self.cluster.as_deref(),
                upstream_local: self.upstream_local,
                downstream_local: Some(self.downstream_local),
                downstream_remote: Some(self.downstream_remote),
                route_name: self.route.as_deref(),
                reporter: Some(self.parties.reporter()),
                source: Some(&self.parties.source),
                destination: Some(&self.parties.destination),
                downstream_identity: self.parties.verified.as_ref(),
                upstream_identity: self.upstream_identity.as_ref(),
                ..LogRecord::default()
            },
        );
    }
}
