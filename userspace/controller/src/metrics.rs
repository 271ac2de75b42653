//! Metrics of the controller, under the names that Istio's dashboards know.
