//! Metrics registry and access log.
