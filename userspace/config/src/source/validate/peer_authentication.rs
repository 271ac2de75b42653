//! PeerAuthentication (Istio `ValidatePeerAuthentication`).

use fairlead_api::security::PeerAuthentication;

use super::selector;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn peer_authentication(object: &PeerAuthentication, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    if let Some(value) = &spec.selector {
        selector::workload_selector(value, &at.field("selector"), sink);
    }
    let ports = at.field("portLevelMtls");
    let everywhere = spec.selector.as_ref().is_none_or(|value| value.match_labels.is_empty());
    if everywhere && !spec.port_level_mtls.is_empty() {
        let message = "belongs to single workloads: whose ports is not said";
        sink.error(&ports, message, "only together with selector.matchLabels");
    }
    if spec.port_level_mtls.contains_key(&0) {
        sink.error(&ports.key("0"), "0 is not a port", "1 to 65535");
    }
}
