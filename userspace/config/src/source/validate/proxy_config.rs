//! ProxyConfig (Istio `ValidateProxyConfig`).

use fairlead_api::networking::ProxyConfig;

use super::{checks, selector};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn proxy_config(object: &ProxyConfig, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    if let Some(value) = &spec.selector {
        selector::workload_selector(value, &at.field("selector"), sink);
    }
    checks::not_negative(sink, &at.field("concurrency"), spec.concurrency.unwrap_or_default());
}
