//! What is done to a request and its response on the way: one pure file per filter.

pub mod fault;
pub mod headers;
pub mod retry;
pub mod rewrite;

use std::time::Duration;

/// The filters of one route, in the order in which they apply: fault, rewrite, headers; then
/// timeout and retries around the attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpFilters {
    /// `fault`.
    pub fault: Option<fault::Fault>,
    /// `rewrite`.
    pub rewrite: Option<rewrite::Rewrite>,
    /// `headers` of the route.
    pub headers: headers::HeaderOps,
    /// `timeout`: of the whole request with its retries; `None` is no limit (Istio's default).
    pub timeout: Option<Duration>,
    /// `retries`; the mesh default applies where the route has none.
    pub retry: Option<retry::RetryPolicy>,
}
