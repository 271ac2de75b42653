//! Istio's standard metrics, with its names and label sets ("Istio Standard Metrics").

mod expose;
mod labels;
mod series;
mod table;

pub(crate) use expose::{FAMILIES, Family};
pub use labels::{
    ConnectionSecurity, Protocol, Reporter, ServiceLabels, TrafficLabels, WorkloadLabels,
};
pub use series::{HttpEvent, HttpSeries, TcpConnection, TcpSeries};
pub(crate) use table::Table;
