//! Metrics and access log of one node daemon.
//!
//! Everything here is built for the data path: a series is looked up once per connection (or per
//! request, where the destination changes) and from then on an event is a relaxed atomic
//! addition; a log line is rendered only when an access log is configured and handed to a writer
//! thread through a queue bounded in bytes, which drops and counts lines rather than wait.
//!
//! # Use
//!
//! ```
//! use fairlead_telemetry::{
//!     ConnectionSecurity, HttpEvent, Protocol, Reporter, ServiceLabels, Telemetry, TrafficLabels,
//!     WorkloadLabels,
//! };
//! use std::time::Duration;
//!
//! let telemetry = Telemetry::new();
//! let labels = TrafficLabels {
//!     reporter: Reporter::Source,
//!     source: WorkloadLabels::unknown(),
//!     destination: WorkloadLabels::unknown(),
//!     service: ServiceLabels::pass_through("example.org"),
//!     protocol: Protocol::Http,
//!     security: ConnectionSecurity::Unknown,
//! };
//! let series = telemetry.http_series(&labels); // keep it with the connection
//! series.record(&HttpEvent {
//!     code: 200,
//!     duration: Duration::from_millis(3),
//!     response_bytes: 512,
//!     ..HttpEvent::default()
//! });
//! let text: String = telemetry.scrape().collect();
//! assert!(text.contains("istio_requests_total{reporter=\"source\""));
//! ```
//!
//! The access log is in [`access_log`].

pub mod access_log;
mod istio;
mod metrics;
mod node;

pub use access_log::{AccessLog, LogRecord};
pub use istio::{
    ConnectionSecurity, HttpEvent, HttpSeries, Protocol, Reporter, ServiceLabels, TcpConnection,
    TcpSeries, TrafficLabels, WorkloadLabels,
};
pub use metrics::{Counter, Exposition, Gauge, Kind, Registry};
pub use node::{MAX_SERIES, SERIES_IDLE, Scrape, Telemetry};
