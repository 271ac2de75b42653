//! The families of Istio's standard metrics, written series by series so that a scrape never
//! holds more than a piece of the text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_types::ResponseFlags;

use super::series::{Outcome, OutcomeCell, REFUSALS};
use super::{HttpSeries, Protocol, TcpSeries};
use crate::metrics::{Exposition, Histogram, Kind, Names, Unit, push_label};

/// One family of traffic metrics.
pub(crate) struct Family {
    name: &'static str,
    help: &'static str,
    source: Source,
}

enum Source {
    Requests,
    Histogram { of: fn(&OutcomeCell) -> &Histogram, names: Names, unit: Unit },
    Tcp(fn(&TcpSeries) -> &AtomicU64),
    Failed,
}

macro_rules! names {
    ($name:literal) => {
        Names {
            bucket: concat!($name, "_bucket"),
            sum: concat!($name, "_sum"),
            count: concat!($name, "_count"),
        }
    };
}

/// The families in the order in which they are written.
pub(crate) static FAMILIES: [Family; 10] = [
    Family {
        name: "istio_requests_total",
        help: "HTTP and gRPC requests.",
        source: Source::Requests,
    },
    Family {
        name: "istio_request_duration_milliseconds",
        help: "Duration of requests in milliseconds.",
        source: Source::Histogram {
            of: |cell| &cell.duration,
            names: names!("istio_request_duration_milliseconds"),
            unit: Unit::Milliseconds,
        },
    },
    Family {
        name: "istio_request_duration_seconds",
        help: "Duration of requests in seconds: the same observations.",
        source: Source::Histogram {
            of: |cell| &cell.duration,
            names: names!("istio_request_duration_seconds"),
            unit: Unit::Seconds,
        },
    },
    Family {
        name: "istio_request_bytes",
        help: "Bytes of request bodies.",
        source: Source::Histogram {
            of: |cell| &cell.request_bytes,
            names: names!("istio_request_bytes"),
            unit: Unit::Bytes,
        },
    },
    Family {
        name: "istio_response_bytes",
        help: "Bytes of response bodies.",
        source: Source::Histogram {
            of: |cell| &cell.response_bytes,
            names: names!("istio_response_bytes"),
            unit: Unit::Bytes,
        },
    },
    Family {
        name: "istio_tcp_sent_bytes_total",
        help: "Bytes from server to client on TCP connections.",
        source: Source::Tcp(|s| &s.sent),
    },
    Family {
        name: "istio_tcp_received_bytes_total",
        help: "Bytes from client to server on TCP connections.",
        source: Source::Tcp(|s| &s.received),
    },
    Family {
        name: "istio_tcp_connections_opened_total",
        help: "TCP connections opened.",
        source: Source::Tcp(|s| &s.opened),
    },
    Family {
        name: "istio_tcp_connections_closed_total",
        help: "TCP connections closed.",
        source: Source::Tcp(|s| &s.closed),
    },
    Family {
        name: "istio_tcp_connections_failed_total",
        help: "TCP connections refused, by response_flags.",
        source: Source::Failed,
    },
];

impl Family {
    /// Whether the family is about HTTP series, and not TCP ones.
    pub(crate) fn is_http(&self) -> bool {
        matches!(self.source, Source::Requests | Source::Histogram { .. })
    }

    pub(crate) fn head(&self, out: &mut Exposition) {
        let kind = match self.source {
            Source::Histogram { .. } => Kind::Histogram,
            _ => Kind::Counter,
        };
        out.family(self.name, self.help, kind);
    }

    pub(crate) fn http(&self, series: &HttpSeries, out: &mut Exposition) {
        let mut base = String::new();
        series.labels.render(&mut base);
        for cell in series.outcomes() {
            let mut labels = base.clone();
            outcome_labels(cell.outcome, series, &mut labels);
            match &self.source {
                Source::Requests => out.raw_sample(self.name, &labels, cell.duration.count()),
                Source::Histogram { of, names, unit } => {
                    of(cell).read().expose(out, names, &labels, *unit);
                }
                Source::Tcp(_) | Source::Failed => {}
            }
        }
    }

    pub(crate) fn tcp(&self, series: &TcpSeries, out: &mut Exposition) {
        let mut base = String::new();
        series.labels.render(&mut base);
        let mut sample = |flags: &str, value: &AtomicU64| {
            let mut labels = base.clone();
            push_label(&mut labels, "response_flags", flags);
            let security = series.labels.security_text();
            push_label(&mut labels, "connection_security_policy", security);
            out.raw_sample(self.name, &labels, value.load(Ordering::Relaxed));
        };
        match &self.source {
            Source::Tcp(of) => {
                // A label set that only ever saw refusals has no connection to report.
                if series.opened.load(Ordering::Relaxed) > 0 {
                    sample(ResponseFlags::None.as_str(), of(series));
                }
            }
            Source::Failed => {
                for (refusal, count) in REFUSALS.iter().zip(&series.failed) {
                    if count.load(Ordering::Relaxed) > 0 {
                        sample(refusal.as_str(), count);
                    }
                }
            }
            Source::Requests | Source::Histogram { .. } => {}
        }
    }
}

/// `response_code`, `grpc_response_status` (gRPC only), `response_flags` and
/// `connection_security_policy`.
fn outcome_labels(outcome: Outcome, series: &HttpSeries, labels: &mut String) {
    match outcome {
        Outcome::Is { code, grpc_status, flags } => {
            let mut number = String::new();
            let _ = write!(number, "{code}");
            push_label(labels, "response_code", &number);
            if series.labels.protocol == Protocol::Grpc {
                number.clear();
                if let Some(status) = grpc_status {
                    let _ = write!(number, "{status}");
                }
                push_label(labels, "grpc_response_status", &number);
            }
            push_label(labels, "response_flags", flags.as_str());
        }
        Outcome::Other => {
            push_label(labels, "response_code", "other");
            push_label(labels, "response_flags", "other");
        }
    }
    push_label(labels, "connection_security_policy", series.labels.security_text());
}
