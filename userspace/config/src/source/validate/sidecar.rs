//! Sidecar (Istio `ValidateSidecar`).

use fairlead_api::networking::Sidecar;

use super::{checks, gateway, workload_entry};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn sidecar(object: &Sidecar, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let selector = at.field("workloadSelector");
    workload_entry::selector(spec.workload_selector.as_ref(), &selector, sink);
    let ingress = at.field("ingress");
    for (index, one) in spec.ingress.iter().enumerate() {
        let at = ingress.index(index);
        match &one.port {
            None => sink.error(&at.field("port"), "is missing", "{number: …, protocol: …}"),
            Some(port) => checks::port(sink, &at.field("port").field("number"), port.number),
        }
        if let Some(tls) = &one.tls {
            gateway::server_tls(tls, &at.field("tls"), sink);
        }
    }
    let egress = at.field("egress");
    for (index, one) in spec.egress.iter().enumerate() {
        let at = egress.index(index);
        let hosts = at.field("hosts");
        if one.hosts.is_empty() {
            sink.error(&hosts, "is missing", "at least one <namespace>/<host>");
        }
        for (index, text) in one.hosts.iter().enumerate() {
            if !text.split_once('/').is_some_and(|(of, name)| !of.is_empty() && !name.is_empty()) {
                let message = format!("{text:?} does not say which namespace");
                sink.error(&hosts.index(index), message, "<namespace>/<host>, such as ./* or */*");
            }
        }
    }
    if let Some(proxy) = spec.outbound_traffic_policy.as_ref().and_then(|p| p.egress_proxy.as_ref())
    {
        let policy = at.field("outboundTrafficPolicy");
        checks::destination(sink, &policy.field("egressProxy"), proxy);
    }
}
